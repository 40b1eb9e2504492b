"""A site's own settings for its trainer, read from a JSON file that its administrator (or the simulator) wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from client.privacy.policy import PrivacyPolicy
from shared_model.bounded import read_at_most
from shared_model.errors import ConfigError
from shared_model.signed_protocol import Coordinator

MAX_CONFIG_BYTES = 1 << 16
DEVICE = r"^(auto|cpu|cuda(:\d{1,2})?)$"
SPLITS = {"site": {"train", "test"}, "evaluator": {"selection", "test"}}


class SiteConfig(PrivacyPolicy):
    """Where one site's things lie, how its patients are split, and its privacy policy. All paths are absolute.

    coordinator: whom this site enrolled with: only protocols and requests under its signature are served. It is always
        written; None: nothing is signed, for a study whose parties all live on one machine.
    site: public name. role: `site` trains; `evaluator` holds the coordinator's held-out cohort and only evaluates.
    cohort: prepared cohort, read-only. state: ledger and replies, this trainer's own folder.
    protocols: folder of approved protocols (`*.json`; with a coordinator, as it signed them); nothing else is served.
    device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
    salt, fractions: patient-wise split by salted hash; `train` and `test` at a site, `selection` and `test` at the
        evaluator. They must not change while the site's state lives, or women of `test` would have been trained on.
    roster: file that names the women of each part instead (:mod:`client.trainer.roster`); the same holds for it.
    The limits are those of :class:`client.privacy.policy.PrivacyPolicy`; epsilon_limit and delta_limit None: the
    protocol's. What is not said means a safe thing. They bind a `site`; an evaluator never trains.
    """

    site: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    role: Literal["site", "evaluator"]
    coordinator: Coordinator | None
    cohort: Path
    state: Path
    protocols: Path
    device: str = Field(pattern=DEVICE)
    salt: str = Field(min_length=1, max_length=200)
    fractions: Mapping[str, float]
    roster: Path | None = None

    @field_validator("cohort", "state", "protocols", "roster")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError("must be an absolute path")
        return path

    @model_validator(mode="after")
    def _splits(self) -> SiteConfig:
        if set(self.fractions) != SPLITS[self.role]:
            raise ValueError(f"fractions: a {self.role} splits into {sorted(SPLITS[self.role])}")
        if any(not 0 < share < 1 for share in self.fractions.values()) or not math.isclose(
            sum(self.fractions.values()), 1.0, abs_tol=1e-6
        ):
            raise ValueError("fractions: shares must lie in (0, 1) and add up to 1")
        return self

    def to_json(self) -> str:
        """The text of the file, for :meth:`read`."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> SiteConfig:
        """Read and check a site's file.

        Raises:
            ConfigError: absent, too large, not JSON, or naming every field that is wrong.
        """
        data = read_at_most(path, MAX_CONFIG_BYTES, error=ConfigError, what=f"the site configuration {path}")
        try:
            return cls.model_validate(json.loads(data))
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'site'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors(include_url=False)
            )
            raise ConfigError(f"{path} is not a valid site configuration: {faults}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not JSON: {error}") from None
