"""The alarms' rules: the defaults of `configs/monitor/alarms.yml`, and a coordinator's own `monitor.yaml` over them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shared_model.errors import ConfigError
from shared_model.plain_yaml import check_plain

MAX_BYTES: Final = 1 << 16
OWN_FILE: Final = "monitor.yaml"  # in the coordinator's home

Severity = Literal["info", "warning", "error"]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Rounds = Annotated[int, Field(ge=1, le=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rule(_Part):
    """What all rules have."""

    severity: Severity
    enabled: bool = True


class StalledRound(Rule):
    """after_s: since the last step."""

    after_s: Seconds


class SilentSite(Rule):
    """after_s: since the last sign of life; rounds: on end without an answer, where there are no signs of life."""

    after_s: Seconds
    rounds: Rounds


class ImageCollapsed(Rule):
    """below: AUC; None: the protocol's."""

    below: Annotated[float, Field(gt=0, lt=1)] | None


class AucFalling(Rule):
    """drop: below the best AUC, in each of the last `rounds` that were measured."""

    drop: Annotated[float, Field(gt=0, lt=1)]
    rounds: Rounds


class LastRounds(Rule):
    """rounds: that are looked at, the newest first."""

    rounds: Rounds


class UpdateRejected(LastRounds):
    """times: in those rounds, of one site."""

    times: Annotated[int, Field(ge=1)]


class EpsilonNearBudget(Rule):
    """share: spent of the budget."""

    share: Annotated[float, Field(gt=0, le=1)]


class CertificateExpiring(Rule):
    """days: left."""

    days: Annotated[float, Field(gt=0, le=365)]


class DiskLow(Rule):
    """free_gb: 10^9 bytes."""

    free_gb: Annotated[float, Field(gt=0)]


class ClockSkew(Rule):
    """ahead_s, behind_s: of the coordinator's clock."""

    ahead_s: Seconds
    behind_s: Seconds


class Rules(_Part):
    """All rules."""

    stalled_round: StalledRound
    study_failed: Rule
    silent_site: SilentSite
    image_collapsed: ImageCollapsed
    auc_falling: AucFalling
    loss_not_finite: LastRounds
    update_rejected: UpdateRejected
    loop_alarm: LastRounds
    epsilon_near_budget: EpsilonNearBudget
    certificate_expiring: CertificateExpiring
    disk_low: DiskLow
    clock_skew: ClockSkew


class Webhook(_Part):
    """token_file: goes as `Authorization: Bearer`; in a file of its own, so that no backup of the settings has it."""

    url: Annotated[str, Field(max_length=500)]
    token_file: Path | None = None
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0

    @field_validator("url")
    @classmethod
    def _safe(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            return url
        raise ValueError("must be https, or http on this machine: alarms name sites")


class Command(_Part):
    """argv: the program and its arguments, as they are: no shell, and nothing of an alarm is put in."""

    argv: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=64)]
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0

    @field_validator("argv")
    @classmethod
    def _absolute(cls, argv: tuple[str, ...]) -> tuple[str, ...]:
        if not Path(argv[0]).is_absolute():
            raise ValueError("the program must be an absolute path")
        return argv


class Send(_Part):
    """To whom alarms are told."""

    log: bool
    webhook: Webhook | None
    command: Command | None
    hold_s: Annotated[float, Field(ge=0, le=3600)]
    repeat_h: Annotated[float, Field(ge=0, le=24 * 365)]
    most_an_hour: Annotated[int, Field(ge=1, le=10_000)]


class MonitorFile(_Part):
    """The whole file. writers: names of `server.monitor.writers`."""

    rules: Rules
    send: Send
    writers: Annotated[tuple[str, ...], Field(max_length=10)]

    @classmethod
    def read(cls, own: Path | None = None) -> Self:
        """The defaults, and over them what a file of one's own names; one that is not there names nothing.

        Raises:
            ConfigError: naming every field that is wrong.
        """
        values = _defaults()
        source = "configs/monitor/alarms.yml"
        if own is not None and own.exists():
            source = str(own)
            values = _over(values, _load(own.read_bytes(), source))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg'].removeprefix('Value error, ')}"
                               for e in error.errors(include_url=False))  # fmt: skip
            raise ConfigError(f"{source} is no valid file of a monitor: {faults}",
                              remedy="correct the named fields") from None  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@cache
def _defaults() -> dict[str, Any]:
    # Data, not code: the defaults live in configs/ like all others.
    return _load(resources.files("configs").joinpath("monitor/alarms.yml").read_bytes(), "configs/monitor/alarms.yml")


def _load(data: bytes, source: str) -> dict[str, Any]:
    try:
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{source} is too long", expected=f"at most {MAX_BYTES} bytes")
        text = data.decode()
        check_plain(text, source=source)
        values = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{source} is no YAML: {' '.join(str(error).split())[:200]}",
                          remedy="correct the line that it names") from None  # fmt: skip
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source} is no mapping", found=type(values).__name__,
                          expected="rules: ..., send: ..., writers: ...")  # fmt: skip
    return values


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are put together, everything else is replaced."""
    found = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        found[key] = _over(base[key], value) if both else value
    return found
