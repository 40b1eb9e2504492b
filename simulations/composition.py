"""The composed configuration as plain values, without the command line; for benchmarks and tests of whole studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from shared_model.errors import ConfigError


def compose_config(overrides: Sequence[str]) -> dict[str, Any]:
    """`configs/config.yaml` with Hydra overrides, resolved; the study is named `bench` unless an override names it."""
    named = any(override.startswith("name=") for override in overrides)
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        config = compose("config", overrides=[*overrides, *([] if named else ["name=bench"])])
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def study_name(overrides: Sequence[str]) -> str:
    """The name that a run takes from its choice of the group `study`, as `hydra.runtime.choices` gives it."""
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        config = compose("config", overrides=[*overrides, "name=unnamed"], return_hydra_config=True)
    return str(config.hydra.runtime.choices["study"])


def compose_study(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that `mammofed simulate` would run, named as it would name it.

    Raises:
        ConfigError: an override that Hydra refuses, in its words.
    """
    try:
        named = any(override.startswith("name=") for override in overrides)
        return compose_config([*overrides, *([] if named else [f"name={study_name(overrides)}"])])
    except HydraException as error:
        raise ConfigError(f"the configuration cannot be composed: {error}") from None
