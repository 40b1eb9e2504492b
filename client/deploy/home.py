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
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from client.deploy.identity import SiteIdentity
from client.deploy.inbox import read_coordinator
from client.deploy.policy_file import Policy, new_policy
from client.trainer.config import SiteConfig
from client.trainer.wire import MAX_SOCKET_PATH
from shared_model.certificates import Member, Role
from shared_model.cohort import Cohort
from shared_model.errors import CohortError, ConfigError
from shared_model.private_files import make_private_folder, read_private, write_private
from shared_model.signed_protocol import Coordinator


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
            text = new_policy(cohort, trains=role is Role.SITE)
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
        return read_coordinator(self.courier / "coordinator.json")

    def trusted_coordinator(self) -> Coordinator | None:
        """Whose signatures the trainer takes, as the administrator accepted; None before the first approval."""
        return read_coordinator(self.trainer / "coordinator.json")

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
