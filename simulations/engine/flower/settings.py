"""The values of `configs/engine/flower.yaml`, checked before anything is made or started; used by the launcher."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from shared_model.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class FlowerSettings:
    """See `configs/engine/flower.yaml`, which has every value's reason.

    Raises:
        ConfigError: a value is missing, unknown, of a wrong type, or contradicts another one.
    """

    device: str
    num_cpus: int
    num_gpus: float
    cpus: int | None
    gpus: int | None
    ray_address: str | None
    start_timeout_s: float
    patience_s: float
    end_timeout_s: float

    @classmethod
    def of(cls, engine: Mapping[str, Any]) -> FlowerSettings:
        """From the resolved group `engine`."""
        names = {field.name for field in fields(cls)}
        given = {key: value for key, value in engine.items() if key != "kind"}
        if given.keys() != names:
            raise ConfigError("engine: values are missing or unknown", found=sorted(given.keys() ^ names),
                              expected=sorted(names))  # fmt: skip
        return cls(**given)

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError("engine.device: unknown choice", found=self.device, expected=" | ".join(DEVICES),
                              remedy="Ray chooses which GPU an actor sees")  # fmt: skip
        for name, least in (("num_cpus", 1), ("num_gpus", 0), ("cpus", 1), ("gpus", 0), ("start_timeout_s", 0),
                            ("patience_s", 0), ("end_timeout_s", 0)):  # fmt: skip
            value = getattr(self, name)
            whole = name in ("num_cpus", "cpus", "gpus")
            if value is None and name in ("cpus", "gpus"):
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ConfigError(f"engine.{name}: must be a {'whole ' if whole else ''}number", found=value)
            if not math.isfinite(value) or value < least:
                raise ConfigError(f"engine.{name}: out of range", found=value, expected=f"at least {least}")
        if self.device == "cuda" and not self.num_gpus:
            raise ConfigError("engine.device is cuda, and actors have no share of a GPU", found="engine.num_gpus=0",
                              expected="above 0", remedy="set engine.num_gpus, say 0.25")  # fmt: skip
        if self.ray_address is not None:
            self._check_cluster()
        elif self.cores < self.num_cpus:
            raise ConfigError("engine.num_cpus: more than there are for all actors together", found=self.num_cpus,
                              expected=f"at most {self.cores}")  # fmt: skip

    def _check_cluster(self) -> None:
        if not isinstance(self.ray_address, str) or not self.ray_address or self.ray_address.startswith("ray://"):
            raise ConfigError("engine.ray_address: no address of a cluster", found=self.ray_address,
                              expected="host:port as `ray start` printed it, or auto",
                              remedy="start the study on a machine of the cluster")  # fmt: skip
        if self.cpus is not None or self.gpus is not None:
            raise ConfigError("engine.cpus and engine.gpus are the cluster's own where there is one",
                              found=f"engine.ray_address={self.ray_address}",
                              remedy="leave them out, or give them to `ray start`")  # fmt: skip

    @property
    def cores(self) -> int:
        """Cores that Ray of our own has."""
        return self.cpus or len(os.sched_getaffinity(0))

    def federation(self, nodes: int) -> str:
        """Flower's federation configuration for `nodes` simulated nodes, as `flwr run --federation-config` takes it."""
        values: dict[str, int | float | str] = {
            "num-supernodes": nodes, "client-resources-num-cpus": self.num_cpus,
            "client-resources-num-gpus": float(self.num_gpus), "init-args-logging-level": '"WARNING"',
        }  # fmt: skip
        if self.ray_address is None:  # a cluster refuses to be told what it has
            values["init-args-num-cpus"] = self.cores
            if self.gpus is not None:
                values["init-args-num-gpus"] = self.gpus
        return " ".join(f"{key}={value}" for key, value in values.items())
