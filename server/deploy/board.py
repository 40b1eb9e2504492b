"""The coordinator's studies as the control service shows them to sites."""

from __future__ import annotations

import logging
import time
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

LIST_S = 1.0  # sites that watch ask every second, each of them

log = logging.getLogger("mammofed.server")


class StudyBoard:
    """Reads the studies from the coordinator's disk. What was proposed never changes, so each is read once."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._home = home
        self._proposals: dict[str, Proposal] = {}
        self._damaged: set[str] = set()
        self._reader = EventReader()
        self._listed: tuple[float, list[Proposal]] = (float("-inf"), [])

    def proposals(self, member: Member) -> Sequence[Proposal]:
        """To a hospital the protocols that name it, to an evaluator all."""
        return [p for p in self._all() if member.role is Role.EVALUATOR or member.site in p.sites]

    def events(self, study: str, after: int) -> Sequence[tuple[int, Event]]:
        """Events of a study's journal above `after`."""
        return self._reader.read(self._home.study(study) / "journal.sqlite", after=after, limit=MAX_EVENTS)

    def _all(self) -> list[Proposal]:
        if time.monotonic() - self._listed[0] >= LIST_S:
            self._listed = (time.monotonic(), self._list())
        return self._listed[1]

    def _list(self) -> list[Proposal]:
        found = []
        for study in studies(self._home):
            try:
                if study.name not in self._proposals:
                    self._proposals[study.name] = _proposal(study)
            except MammoFedError as error:  # the sites go on with the others
                if study.name not in self._damaged:
                    log.error("%s is not offered: %s", study.name, error)
                self._damaged.add(study.name)
                continue
            found.append(self._proposals[study.name])
        return found


def _proposal(study: StudyFolder) -> Proposal:
    protocol = Protocol.read(study.path / "protocol.json")
    return Proposal(
        study=study.name, sha256=protocol.sha256, file=read_private(study.path / SIGNED, limit=MAX_SIGNED_BYTES),
        sites=frozenset(site.name for site in protocol.federation.sites),
    )  # fmt: skip
