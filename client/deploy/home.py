"""A site's folder: what lies where, who may read it, and what the hospital allows; made by `site init`.

    <home>/policy.yaml    what this hospital allows, and where its cohort is; the administrator's, read at every start
    <home>/identity/      the courier's: keys and certificate (`client.deploy.identity`)
    <home>/courier/       the courier's: signing key, audit log, inbox/ of protocols, status.json, Flower's home
    <home>/trainer/       the trainer's: approved protocols/, state/ (ledger, replies, audit log), coordinator.json,
                          party.json (name and role)
    <home>/run/           the socket between the two
    <home>/models/        released models that the administrator put there, for `site gain` (`client.gain.at_home`)

On a machine of its own each role has its user (`client/deploy/units`); for one user all of it is 0700.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from client.deploy.identity import SiteIdentity
from client.privacy.policy import PrivacyPolicy
from client.trainer.config import DEVICE, SiteConfig
from client.trainer.wire import MAX_SOCKET_PATH
from shared_model.certificates import Member, Role
from shared_model.cohort import Cohort
from shared_model.errors import CohortError, ConfigError
from shared_model.plain_yaml import check_plain
from shared_model.private_files import make_private_folder, read_private, write_private
from shared_model.signed_protocol import Coordinator

MAX_POLICY_BYTES = 1 << 16

_POLICY = """\
# What this hospital allows. The trainer reads it at every start and refuses what goes beyond it, whoever asks.
cohort: {cohort}
device: auto              # auto | cpu | cuda | cuda:<n>
# What may be asked of these women. `mammofed site policy` says what each line means, and what is left open.
{limits}
# Who is trained on, patient-wise by salted hash. Never change these two while the site's state lives: women of `test`
# would have been trained on, and the trainer refuses it.
salt: {salt}
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


class Party(BaseModel):
    """party.json: who this trainer is in the consortium."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: str
    role: Role


@dataclass(frozen=True)
class SiteHome:
    """The folder of one site or of the evaluator."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, *, cohort: Path, role: Role) -> SiteHome:
        """Make the folders and a policy with safe values. The same again is fine.

        Raises:
            ConfigError: no prepared cohort is there. StorageError: the disk refuses.
        """
        if not (cohort / "cohort.json").exists():
            raise ConfigError(f"{cohort} is no prepared cohort", remedy="make one first: `mammofed site import`")
        home = cls(folder)
        for path in (folder, home.courier, home.inbox, home.courier / "logs", home.trainer, home.protocols,
                     home.trainer / "logs", folder / "run"):  # fmt: skip
            make_private_folder(path)
        if not home.policy_file.exists():
            trains = role is Role.SITE
            text = _POLICY.format(
                cohort=json.dumps(str(cohort.resolve())), limits="\n".join(policy_lines(trains=trains).values()),
                salt=secrets.token_hex(16),
                test_fraction="0.2" if trains else "0.6",
                what="of the patients are never trained on" if trains else "`test`; the rest is `selection`",
            )  # fmt: skip
            write_private(home.policy_file, text.encode())
        return home

    @classmethod
    def open(cls, folder: Path) -> SiteHome:
        """The home in a folder.

        Raises:
            ConfigError: there is none.
        """
        if not (folder / "policy.yaml").exists():
            raise ConfigError(f"{folder} is no site's home", remedy="run `mammofed site init` with an invitation")
        return cls(folder)

    # --- what lies in it ---

    @property
    def policy_file(self) -> Path:
        """The hospital's policy."""
        return self.folder / "policy.yaml"

    @property
    def courier(self) -> Path:
        """The courier's own folder."""
        return self.folder / "courier"

    @property
    def inbox(self) -> Path:
        """Protocols that the coordinator proposes, under its signature."""
        return self.courier / "inbox"

    @property
    def trainer(self) -> Path:
        """The trainer's own folder."""
        return self.folder / "trainer"

    @property
    def protocols(self) -> Path:
        """Protocols that the site's administrator approved."""
        return self.trainer / "protocols"

    @property
    def state(self) -> Path:
        """The trainer's ledger, replies and audit log."""
        return self.trainer / "state"

    @property
    def socket(self) -> Path:
        """Where the courier finds the trainer.

        Raises:
            ConfigError: the home's path is too long for a socket, and in its place lies somebody else's folder.
        """
        path = self.folder.resolve() / "run" / "trainer.sock"
        if len(str(path).encode()) <= MAX_SOCKET_PATH:
            return path
        short = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"mammofed-{short}"
        with contextlib.suppress(FileNotFoundError):  # anybody may write there, and a stranger is no trainer
            there, own = folder.lstat(), (self.folder / "run").stat()
            if not stat.S_ISDIR(there.st_mode) or there.st_uid != own.st_uid:
                raise ConfigError("somebody else's folder lies where this site's socket should", found=str(folder),
                                  expected=f"a folder of user {own.st_uid}", remedy="remove it; or give the site a "
                                  f"home whose path is shorter than {MAX_SOCKET_PATH - 17} bytes")  # fmt: skip
        return folder / "trainer.sock"

    def identity(self) -> SiteIdentity:
        """The site's keys and certificate."""
        return SiteIdentity.open(self.folder / "identity")

    def offered_coordinator(self) -> Coordinator | None:
        """Who signs, as the coordinator told this site's courier at enrolment; None before that."""
        return _coordinator(self.courier / "coordinator.json")

    def trusted_coordinator(self) -> Coordinator | None:
        """Whose signatures the trainer takes, as the administrator accepted; None before the first approval."""
        return _coordinator(self.trainer / "coordinator.json")

    def trust(self, coordinator: Coordinator) -> None:
        """Take this coordinator's signatures from now on. With it the trainer learns who it is: where the roles are
        users of their own, it cannot read the courier's files."""
        settings = self.identity().settings
        party = Party(site=settings.site, role=settings.role)
        write_private(self.trainer / "party.json", party.model_dump_json().encode())
        write_private(self.trainer / "coordinator.json", coordinator.model_dump_json().encode())

    def trainer_config(self) -> SiteConfig:
        """The trainer's configuration, from the policy and the accepted coordinator.

        Raises:
            ConfigError: the policy is wrong, or no protocol was approved yet.
        """
        coordinator = self.trusted_coordinator()
        if coordinator is None:
            raise ConfigError("nothing was approved at this site yet, so the trainer has nothing to serve",
                              remedy="`mammofed site review`, then `mammofed site approve`")  # fmt: skip
        return self.config_for(coordinator)

    def _party(self) -> Party:
        """Who this is: as the trainer was told, or before the first approval as the courier's files say."""
        path = self.trainer / "party.json"
        if not path.exists():
            settings = self.identity().settings
            return Party(site=settings.site, role=settings.role)
        try:
            return Party.model_validate_json(read_private(path))
        except ValidationError:
            raise ConfigError(f"{path} is damaged", remedy="approve the study again") from None

    def config_for(self, coordinator: Coordinator | None) -> SiteConfig:
        """What the trainer would be configured with; for doctor, before anything was approved.

        Raises:
            ConfigError: the policy is wrong.
        """
        policy, party = Policy.read(self.policy_file), self._party()
        role: Literal["site", "evaluator"] = "site" if party.role is Role.SITE else "evaluator"
        rest = "train" if role == "site" else "selection"
        return SiteConfig(
            site=party.site, role=role, coordinator=coordinator, cohort=policy.cohort, state=self.state.resolve(),
            protocols=self.protocols.resolve(), device=policy.device, salt=policy.salt,
            fractions={rest: 1.0 - policy.test_fraction, "test": policy.test_fraction},
            **policy.limits,
        )  # fmt: skip


def check_cohort(cohort: Path, member: Member) -> None:
    """Refuse a cohort that the trainer of this member would not open, before keys are made for it.

    Raises:
        ConfigError: there is none. CohortError: damaged, of another contract, or another site's.
    """
    if not (cohort / "cohort.json").exists():
        raise ConfigError(f"{cohort} is no prepared cohort", remedy="make one first: `mammofed site import`")
    site = Cohort.open(cohort).site
    if member.role is Role.SITE and site != member.site:
        raise CohortError("the cohort was prepared for another site", found=site, expected=member.site,
                          remedy=f"import it as `site: {member.site}`, or be invited as {site}")  # fmt: skip


def _coordinator(path: Path) -> Coordinator | None:
    if not path.exists():
        return None
    try:
        return Coordinator.model_validate_json(read_private(path))
    except ValidationError:
        raise ConfigError(f"{path} is damaged", remedy="restore it from a backup") from None
