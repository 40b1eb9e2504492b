"""The coordinator's folder: what lies where, and the one file of settings; made by `server init`, used by all commands.

    <home>/coordinator.json   name, host names, ports
    <home>/signing.key        Ed25519: signs protocols, requests and heads of the audit log
    <home>/audit.jsonl        audit log; audit-spool/ holds entries of commands while the daemon has the log
    <home>/ca/, registry/     certificate authority, and who is invited, enrolled, revoked
    <home>/link/              SuperLink's own: certificate, database, Flower's home, node ids
    <home>/monitor.yaml       alarms and writers that differ from the defaults; made by hand, may be absent
    <home>/studies/<study>/   signed protocol, weights, journal, checkpoints, report
    <home>/run/               what runs now: processes, who is there; safe to lose
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.deploy.nodes import Nodes
from server.enrolment.authority import Authority
from server.enrolment.enrolment import Enrolment
from server.enrolment.registry import Registry
from shared_model.audit import AuditLog
from shared_model.audit.entries import Value
from shared_model.errors import AuditError, ConfigError, StorageError
from shared_model.fingerprint import six_words
from shared_model.private_files import make_private_folder, read_private, remove_private, write_private
from shared_model.protocol import Name
from shared_model.signed_protocol import Coordinator
from shared_model.signing import SigningKey

DEFAULT_PORT = 8443
MAX_SPOOLED = 10_000
QUIET = frozenset({"door"})  # entries of every few seconds; told to the sites with the next that counts

Port = Annotated[int, Field(ge=1, le=65535)]


class CoordinatorFile(BaseModel):
    """coordinator.json.

    name: in signatures. title: as people read it. hosts: names that sites connect to, for the certificate.
    listen: address of both doors. port: of the door for enrolled sites. enrol_port: of the door for invitations.
    link_port, runtime: on the loopback, SuperLink's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    title: Annotated[str, Field(min_length=1, max_length=64)]
    hosts: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
    listen: str = "0.0.0.0"  # noqa: S104  # the door is what the outside is meant to reach
    port: Port = DEFAULT_PORT
    enrol_port: Port = DEFAULT_PORT + 1
    link_port: Port = 18000

    @model_validator(mode="after")
    def _three_ports(self) -> CoordinatorFile:
        if len({self.port, self.enrol_port, self.link_port}) < 3:
            raise ValueError("port, enrol_port and link_port must be three different ones")
        return self


@dataclass(frozen=True)
class CoordinatorHome:
    """The folder of one coordinator."""

    folder: Path
    settings: CoordinatorFile

    @classmethod
    def create(cls, folder: Path, settings: CoordinatorFile) -> CoordinatorHome:
        """Make the folder, the authority and the keys. One that was killed meanwhile is finished.

        Raises:
            ConfigError: a coordinator lives there. StorageError: the disk refuses.
        """
        if (folder / "coordinator.json").exists():
            raise ConfigError(f"{folder} is a coordinator's home already",
                              remedy="use it; a new one would shut out every site")  # fmt: skip
        make_private_folder(folder)
        for name in ("link", "studies", "run", "audit-spool"):
            make_private_folder(folder / name)
        if not (folder / "ca" / "ca.pem").exists():
            Authority.create(folder / "ca", name=settings.title)
        if not (folder / "signing.key").exists():
            SigningKey.create(folder / "signing.key")
        Registry(folder / "registry").close()
        write_private(folder / "coordinator.json", settings.model_dump_json(indent=1).encode())
        home = cls(folder, settings)
        home.record("coordinator_made", name=settings.name)
        return home

    @classmethod
    def open(cls, folder: Path) -> CoordinatorHome:
        """The home in a folder.

        Raises:
            ConfigError: there is none, or its settings are damaged. StorageError: open to other users.
        """
        path = folder / "coordinator.json"
        if not path.exists():
            raise ConfigError(f"{folder} is no coordinator's home", remedy="run `mammofed server init`")
        try:
            return cls(folder, CoordinatorFile.model_validate_json(read_private(path)))
        except ValidationError as error:
            places = ", ".join(".".join(map(str, e["loc"])) or e["msg"] for e in error.errors(include_url=False))
            raise ConfigError(f"{path} is damaged", found=places, remedy="restore it from a backup") from None

    # --- what lies in it ---

    def authority(self) -> Authority:
        """The certificate authority."""
        return Authority.open(self.folder / "ca")

    def registry(self) -> Registry:
        """The registry of members; to be closed."""
        return Registry(self.folder / "registry")

    @contextmanager
    def enrolment(self) -> Iterator[Enrolment]:
        """Enrolment for one command."""
        with self.registry() as registry:
            yield Enrolment(self.authority(), registry, fingerprint=six_words)

    @property
    def signing_key(self) -> SigningKey:
        """The coordinator's Ed25519 key."""
        return SigningKey.load(self.folder / "signing.key")

    @property
    def coordinator(self) -> Coordinator:
        """Who signs, as sites know it."""
        return Coordinator.of(self.settings.name, self.signing_key.public)

    @property
    def link(self) -> Path:
        """SuperLink's own folder."""
        return self.folder / "link"

    @property
    def run(self) -> Path:
        """What says how things are now."""
        return self.folder / "run"

    @property
    def nodes(self) -> Nodes:
        """Which of SuperLink's nodes is which party."""
        return Nodes(self.link / "nodes.json")

    def study(self, name: str) -> Path:
        """Folder of a study."""
        return self.folder / "studies" / name

    # --- the audit log ---

    @property
    def audit_file(self) -> Path:
        """The log's file; the daemon holds a lock on it while it runs."""
        return self.folder / "audit.jsonl"

    def audit_log(self) -> AuditLog:
        """Open the log for writing; held by the daemon while it runs."""
        return AuditLog(self.audit_file, owner=self.settings.name, key=self.signing_key, quiet=QUIET)

    def record(self, kind: str, **fields: Value) -> None:
        """Put an entry into the audit log; through the spool while the daemon holds it.

        Raises:
            StorageError: the disk refuses. AuditError: the log was changed.
        """
        entry = json.dumps({"kind": kind, "fields": fields}, allow_nan=False).encode()
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"
        write_private(self.folder / "audit-spool" / name, entry)
        try:
            log = self.audit_log()
        except StorageError:
            return  # the daemon holds it and takes the entry from the spool
        with log:
            self.drain(log)

    def drain(self, log: AuditLog) -> None:
        """Move spooled entries into the log, oldest first. One that was written twice by a crash stands there twice;
        one that is no entry is put aside, and that is on record.

        Raises:
            StorageError: the disk refuses. AuditError: the log was changed.
        """
        for path in sorted((self.folder / "audit-spool").glob("*.json"))[:MAX_SPOOLED]:
            fault = ""
            try:
                entry = json.loads(read_private(path))
                log.append(entry["kind"], **entry["fields"])
            except (ValueError, KeyError, TypeError) as error:
                fault = type(error).__name__
            except AuditError as error:
                fault = error.problem
            if fault:
                log.append("spool_refused", name=path.name, fault=fault[:200])  # raises where the log is at fault
                path.replace(path.with_suffix(".refused"))
            else:
                remove_private(path)
