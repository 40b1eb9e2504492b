"""policy.yaml, what a hospital allows: written by `site init`, then the administrator's, read at every start."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, ValidationError, field_validator

from client.privacy.policy import PrivacyPolicy
from client.trainer.config import DEVICE
from shared_model.errors import ConfigError
from shared_model.plain_yaml import check_plain

MAX_POLICY_BYTES = 1 << 16

_POLICY = """\
# What this hospital allows. The trainer reads it at every start and refuses what goes beyond it, whoever asks.
cohort: {cohort}
device: auto              # auto | cpu | cuda | cuda:<n>
# What may be asked of these women. `mammofed site policy` says what each line means, and what is left open.
{limits}
# Who is trained on, patient-wise by salted hash. Never change these two while the site's state lives: women of `test`
# would have been trained on, and the trainer refuses it.
salt: "{salt}"
test_fraction: {test_fraction}        # {what}
"""

# What a new policy says; YAML as it is written. An evaluator trains nobody, and the first two bind it to nothing.
_LIMITS = {
    "private_only": "true", "epsilon_limit": "8.0", "delta_limit": "1.0e-5", "least_noise": "0.3",
    "greatest_clip": "10.0", "greatest_sample_rate": "0.5", "most_rounds": "500", "least_cohort": "10",
    "secure_sum": "allowed", "least_sites": "3", "suppress_below": "5", "metrics": "final",
}  # fmt: skip


def policy_lines(*, trains: bool = True) -> dict[str, str]:
    """The lines of a new policy's limits by name, each with its comment."""
    values = _LIMITS if trains else _LIMITS | {"private_only": "false", "epsilon_limit": "null"}
    fields = PrivacyPolicy.model_fields
    return {name: f"{name + ': ' + value:25} # {fields[name].description}" for name, value in values.items()}


def new_policy(cohort: Path, *, trains: bool) -> str:
    """The file of a new home: safe values, a salt of its own, a comment on each line."""
    return _POLICY.format(
        cohort=json.dumps(str(cohort.resolve())), limits="\n".join(policy_lines(trains=trains).values()),
        salt=secrets.token_hex(16),
        test_fraction="0.2" if trains else "0.6",
        what="of the patients are never trained on" if trains else "`test`; the rest is `selection`",
    )  # fmt: skip


class Policy(PrivacyPolicy):
    """policy.yaml; in the file every field is written out.

    cohort: prepared cohort. test_fraction: of the patients, never trained on; at the evaluator the share of `test`,
    the rest being `selection`.
    """

    cohort: Path
    device: Annotated[str, Field(pattern=DEVICE)]
    salt: Annotated[str, Field(min_length=1, max_length=200)]
    test_fraction: Annotated[float, Field(strict=True, gt=0, lt=1)]

    @field_validator("cohort")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError("must be an absolute path")
        return path

    def to_yaml(self) -> str:
        """The file without its comments."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            ConfigError: absent, no plain YAML, or naming every field that is wrong or missing: what a hospital allows
                is what it wrote, and no default of a release.
        """
        try:
            with path.open(encoding="utf-8") as stream:
                text = stream.read(MAX_POLICY_BYTES + 1)
            if len(text) > MAX_POLICY_BYTES:
                raise ConfigError(f"{path} is too long for a policy", expected=f"at most {MAX_POLICY_BYTES} characters")
            check_plain(text, source=str(path))
            values = yaml.safe_load(text)
            faults = _missing(values)
            found = cls.model_validate(values)
        except OSError as error:
            raise ConfigError(f"cannot read the policy {path}: {error.strerror}",
                              remedy="restore it; without a policy nothing runs") from None  # fmt: skip
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc'])) or 'policy'}: {e['msg'].removeprefix('Value error, ')}"
                     for e in error.errors()]  # fmt: skip
            raise _invalid(path, [*wrong, *faults]) from None
        except (ValueError, RecursionError, yaml.YAMLError) as error:  # a date of month 13 is a ValueError of PyYAML's
            raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}",
                              remedy="correct the line that it names") from None  # fmt: skip
        if faults:
            raise _invalid(path, faults)
        return found


def _missing(values: object) -> list[str]:
    """What a policy of an older release does not say, in words."""
    absent = [name for name in PrivacyPolicy.model_fields if isinstance(values, dict) and name not in values]
    return [f"{name}: this line is missing" for name in absent]


def _invalid(path: Path, faults: list[str]) -> ConfigError:
    return ConfigError(f"{path} is no valid policy: {'; '.join(faults)}",
                       remedy="correct the named fields; what each line means, and what to write where one is missing: "
                       f"`mammofed site policy {path.parent}`")  # fmt: skip
