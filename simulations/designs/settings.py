"""The configuration group `design`, checked before anything is made; called by the launcher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared_model.errors import ConfigError
from simulations.released import is_released

HELD_OUT_DESIGN = "held_out"
CROSS_VALIDATION, LEAVE_ONE_SITE_OUT, TEMPORAL = "cross_validation", "leave_one_site_out", "temporal"
KINDS = (HELD_OUT_DESIGN, CROSS_VALIDATION, LEAVE_ONE_SITE_OUT, TEMPORAL)
MOST_FOLDS = 20


def kind_of(config: Mapping[str, Any]) -> str:
    """The design; `held_out` for a configuration of before there were others."""
    return str((config.get("design") or {}).get("kind", HELD_OUT_DESIGN))


def is_design(config: Mapping[str, Any]) -> bool:
    """Whether a configuration asks for several trainings of one design, and not for one study."""
    return kind_of(config) != HELD_OUT_DESIGN


def trainings(config: Mapping[str, Any]) -> int:
    """How many federated trainings a configuration asks for, controls not counted."""
    design = config.get("design") or {}
    counts = {CROSS_VALIDATION: design.get("folds", 1),
              LEAVE_ONE_SITE_OUT: config["sites"] + int(design.get("reference", False))}  # fmt: skip
    return int(counts.get(kind_of(config), 1))


def check_design(config: Mapping[str, Any]) -> None:
    """Refuse a design that cannot be.

    Raises:
        ConfigError: naming the setting.
    """
    kind = kind_of(config)
    if kind not in KINDS:
        raise ConfigError("design: unknown choice", found=kind, expected=" | ".join(KINDS))
    if kind == HELD_OUT_DESIGN:
        return
    for key in ("baselines", "arms", "seeds"):
        if config[key]:
            raise ConfigError(f"design={kind} and {key}: a design is one model, judged by several trainings",
                              found=f"{key} = {config[key]}", expected="one of the two",
                              remedy=f"leave {key} out, or design")  # fmt: skip
    if is_released(config):
        raise ConfigError(f"design={kind}: the released model was trained on women who would be tested",
                          found=f"weights={config['weights']}", expected="weights=public or random")  # fmt: skip
    if config["engine"]["kind"] != "local":
        raise ConfigError(f"design={kind} runs its trainings in this machine's own processes",
                          found=f"engine={config['engine']['kind']}", expected="engine=local")  # fmt: skip
    if config["personal"]["kind"] != "none":
        raise ConfigError(f"design={kind} judges the shared model, at hospitals that may have none of their own",
                          found=f"personal={config['personal']['kind']}", expected="personal=none")  # fmt: skip
    if kind == LEAVE_ONE_SITE_OUT and config["sites"] < 2:
        raise ConfigError("sites: without its one site nobody is left to train", found=config["sites"],
                          expected=f"at least 2 for design={kind}")  # fmt: skip
    _check_values(kind, config["design"])
    _check_epsilon(kind, config)


def _check_values(kind: str, design: Mapping[str, Any]) -> None:
    if kind == CROSS_VALIDATION:
        folds = design["folds"]
        if not isinstance(folds, int) or isinstance(folds, bool) or not 2 <= folds <= MOST_FOLDS:
            raise ConfigError("design.folds: out of range", found=folds, expected=f"2 to {MOST_FOLDS}")
    if kind == LEAVE_ONE_SITE_OUT and not isinstance(design["reference"], bool):
        raise ConfigError("design.reference: neither yes nor no", found=design["reference"], expected="true | false")
    if kind == TEMPORAL:
        until = design["until"]
        if not _is_number(until):
            problem = "nobody said which women are the later ones" if until is None else "this is no year"
            raise ConfigError(f"design.until: {problem}", found=until,
                              expected="a year, or a decimal one", remedy="add design.until=2022")  # fmt: skip
        if design["years"] is not None and not Path(str(design["years"])).is_file():
            raise ConfigError("design.years: there is no such file", found=design["years"],
                              expected="a CSV file with the columns pseudonym, year")  # fmt: skip


def _check_epsilon(kind: str, config: Mapping[str, Any]) -> None:
    granted = config["design"]["epsilon"]
    if granted is None:
        return
    if config["privacy"]["mode"] == "none":
        raise ConfigError("design.epsilon: without differential privacy nothing is spent", found=granted,
                          expected="null, or privacy=patient")  # fmt: skip
    if not _is_number(granted) or granted < float(config["privacy"]["epsilon"]):
        raise ConfigError(f"design.epsilon: design={kind} cannot spend less in all than one of its trainings",
                          found=granted, expected=f"at least privacy.epsilon, {config['privacy']['epsilon']:g}",
                          remedy="null keeps all trainings together within privacy.epsilon")  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
