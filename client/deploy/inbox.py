"""Signed protocols that came from the coordinator, and who else takes part; filled by presence, read by `site review`.

    <courier>/coordinator.json   whose signatures are believed: came with the certificate, and never changes after that
    <courier>/inbox/*.json       signed protocols as they are, checked before they were written
    <courier>/members.json       node keys of the other parties, for their six words
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_model.control import MAX_MEMBERS, MAX_PROTOCOLS, MemberKey
from shared_model.errors import ConfigError, EnrolmentError, MammoFedError, ProtocolError
from shared_model.private_files import make_private_folder, read_private, write_private
from shared_model.signed_protocol import MAX_SIGNED_BYTES, Coordinator, SignedProtocol

MAX_INBOX = 200  # a coordinator may sign as many as it likes, and must not fill this disk with them


class _Members(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    members: Annotated[tuple[MemberKey, ...], Field(max_length=MAX_MEMBERS)]


def read_coordinator(path: Path) -> Coordinator | None:
    """Whose signatures count, by a file of this home; None where there is none yet.

    Raises:
        ConfigError: the file is damaged. StorageError: unreadable, or open to others.
    """
    if not path.exists():
        return None
    try:
        return Coordinator.model_validate_json(read_private(path))
    except ValidationError:
        raise ConfigError(f"{path} is damaged", remedy="restore it from a backup") from None


class Inbox:
    """The files in the courier's folder.

    Args:
        release: what is installed here; protocols of another are not taken.
    """

    def __init__(self, folder: Path, *, site: str, release: str) -> None:
        self.folder, self.site, self.release = folder, site, release
        self._passed_over: set[str] = set()  # offered, and not to be had by this release: not fetched again and again

    # --- whose signatures count ---

    @property
    def coordinator(self) -> Coordinator | None:
        """Who signs; None before enrolment.

        Raises:
            ConfigError: the file is damaged. StorageError: unreadable, or open to others.
        """
        return read_coordinator(self.folder / "coordinator.json")

    def pin(self, coordinator: Coordinator | None) -> None:
        """Believe this coordinator from now on; the same again is fine.

        Raises:
            EnrolmentError: another one is pinned already.
        """
        there = self.coordinator
        if coordinator is None or coordinator == there:
            return
        if there is not None:
            raise EnrolmentError("the coordinator shows another signing key than at this site's enrolment",
                                 found=f"{coordinator.name}, key {coordinator.key[:16]}",
                                 expected=f"{there.name}, key {there.key[:16]}",
                                 remedy="call the coordinator and compare the six words; if its key is really new, "
                                 "enrol anew: `mammofed site init` into another home, by a new invitation")  # fmt: skip
        coordinator.verify_key  # noqa: B018  # a key at all?
        write_private(self.folder / "coordinator.json", coordinator.model_dump_json().encode())

    # --- protocols ---

    def have(self) -> tuple[str, ...]:
        """SHA-256 of the protocols that need not be sent again."""
        return tuple(sorted({*(signed.sha256 for signed in self.protocols()), *self._passed_over}))[:MAX_PROTOCOLS]

    def protocols(self) -> list[SignedProtocol]:
        """All that are here and hold; a file that does not is passed over, since whoever reads it again says why."""
        there, coordinator = self.folder / "inbox", self.coordinator
        if coordinator is None or not there.exists():
            return []
        found = []
        for path in sorted(there.glob("*.json"))[:MAX_PROTOCOLS]:
            try:
                found.append(SignedProtocol.read(path, coordinator=coordinator, release=self.release))
            except MammoFedError:
                continue
        return found

    def take(self, files: Iterable[bytes], *, offered: Sequence[str]) -> list[str]:
        """Check and keep signed protocols.

        Returns:
            in words, which were not taken and why.
        """
        words: list[str] = []
        coordinator = self.coordinator
        if coordinator is None:
            return ["protocols came, but this site does not know the coordinator's signing key; enrol again"]
        make_private_folder(self.folder / "inbox")
        for file in files:
            try:
                signed = SignedProtocol.from_json(file, coordinator=coordinator, release=self.release,
                                                  source="a protocol from the coordinator")  # fmt: skip
                self._check_site(signed)
            except MammoFedError as error:
                words.append(str(error))
                self._pass_over(file, offered)
                continue
            path = self.folder / "inbox" / f"{signed.protocol.study}-{signed.sha256[:16]}.json"
            if not path.exists() and sum(1 for _ in path.parent.glob("*.json")) >= MAX_INBOX:
                words.append(f"the inbox holds {MAX_INBOX} protocols, no more are taken: remove those that are over")
                self._pass_over(file, offered)
                continue
            write_private(path, file)
        return words

    def _check_site(self, signed: SignedProtocol) -> None:
        if self.site and self.site not in {site.name for site in signed.protocol.federation.sites}:
            raise ProtocolError("a protocol from the coordinator is not for this site", found=signed.protocol.study)

    def _pass_over(self, file: bytes, offered: Sequence[str]) -> None:
        """Do not ask for it again in this process; by the hash that it claims, if it was offered under it."""
        try:
            claimed = json.loads(file[: MAX_SIGNED_BYTES + 1]).get("sha256")
        except (ValueError, RecursionError, AttributeError):
            return
        if claimed in offered:
            self._passed_over.add(str(claimed))

    # --- the others ---

    def keep_members(self, members: Sequence[MemberKey]) -> None:
        """Write who else takes part, if it has changed."""
        # A coordinator that was started again knows a trainer's key only once that site has called.
        known = {member.site: member.trainer for member in self.members()}
        told = [m if m.trainer is not None else m.model_copy(update={"trainer": known.get(m.site)}) for m in members]
        document = _Members(members=tuple(sorted(told, key=lambda member: member.site)))
        if document.members != self.members():
            write_private(self.folder / "members.json", document.model_dump_json(indent=1).encode())

    def members(self) -> tuple[MemberKey, ...]:
        """Who else takes part, as the coordinator says."""
        path = self.folder / "members.json"
        if not path.exists():
            return ()
        try:
            return _Members.model_validate_json(read_private(path)).members
        except ValidationError:
            return ()  # comes again with the next answer
