"""The coordinator's studies as the control service shows them to sites."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from server.control.board import MAX_EVENTS, Proposal
from server.deploy.home import CoordinatorHome
from server.deploy.studies import SIGNED, StudyFolder, studies
from server.rounds.events import Event
from server.rounds.follow import EventReader
from shared_model.certificates import Member, Role
from shared_model.errors import MammoFedError
from shared_model.private_files import read_private
from shared_model.protocol import Protocol
from shared_model.signed_protocol import MAX_SIGNED_BYTES

log = logging.getLogger("mammofed.server")


class StudyBoard:
    """Reads the studies from the coordinator's disk. What was proposed never changes, so each is read once."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._home = home
        self._proposals: dict[str, Proposal] = {}
        self._damaged: dict[str, str] = {}
        self._reader = EventReader()

    def proposals(self, member: Member) -> Sequence[Proposal]:
        """To a hospital the protocols that name it, to an evaluator all."""
        return [p for p in self._all() if member.role is Role.EVALUATOR or member.site in p.sites]

    def events(self, study: str, after: int) -> Sequence[tuple[int, Event]]:
        """Events of a study's journal above `after`."""
        return self._reader.read(self._home.study(study) / "journal.sqlite", after=after, limit=MAX_EVENTS)

    def _all(self) -> list[Proposal]:
        found = []
        for study in studies(self._home):
            if study.name not in self._proposals:
                try:
                    self._proposals[study.name] = _proposal(study)
                except MammoFedError as error:  # the other studies are shown all the same
                    if self._damaged.get(study.name) != str(error):
                        log.error("study %s is not shown to its sites: %s", study.name, error)
                    self._damaged[study.name] = str(error)
                    continue
            found.append(self._proposals[study.name])
        return found


def _proposal(study: StudyFolder) -> Proposal:
    protocol = Protocol.read(study.path / "protocol.json")
    return Proposal(
        study=study.name, sha256=protocol.sha256, file=read_private(study.path / SIGNED, limit=MAX_SIGNED_BYTES),
        sites=frozenset(site.name for site in protocol.federation.sites),
    )  # fmt: skip
