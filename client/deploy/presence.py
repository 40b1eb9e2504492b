"""The courier's conversation with the coordinator: enrol, renew, beat, fetch protocols, exchange audit statements.

Started by `site join`, in a thread. It never exits by itself: whatever fails is written to `<courier>/status.json` in
words and tried again, at most a minute later; so a site that was cut off for three weeks goes on by itself, and one
whose certificate ran out says what a person has to do.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from client.deploy.audit_exchange import AuditExchange, TrainerAudit
from client.deploy.control import ControlClient, ControlLine
from client.deploy.identity import SiteIdentity, Stage
from client.deploy.inbox import Inbox
from client.deploy.proxy import Proxy
from client.deploy.status import CourierStatus, StudyStatus
from shared_model.audit import AuditLog
from shared_model.certificates import Role
from shared_model.control import (
    MAX_PROTOCOLS,
    BeatReply,
    BeatRequest,
    DocumentsRequest,
    StudyEvent,
    TrainerState,
    WatchRequest,
    plain,
)  # fmt: skip
from shared_model.enrolment import EnrolReply, decode
from shared_model.errors import CertificateError, MammoFedError, TrainerError
from shared_model.private_files import write_private

STATUS: Final = "status.json"
_PATIENCE_S: Final = 60.0
WRITE_S: Final = 15.0  # between writes of a status that is no news

log = logging.getLogger("mammofed.courier")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often; seconds."""

    beat_s: float = 5.0
    documents_s: float = 30.0
    audit_s: float = 10.0
    """Between looks at the trainer's audit log."""
    renew_s: float = 300.0
    """After a renewal that failed."""
    most_s: float = 60.0
    """The longest wait after failures, and the wait while only a person can help."""
    join_s: float = 10.0


@dataclass(kw_only=True)
class Trainer:
    """What presence asks of the trainer and of the site's administrator; all of it is optional for tests and doctor.

    state: whether it answers, and on what device. decided: SHA-256 of approved, and of declined protocols.
    """

    state: Callable[[], TrainerState] = lambda: TrainerState(up=False)
    audit: TrainerAudit | None = None
    decided: Callable[[], tuple[Sequence[str], Sequence[str]]] = lambda: ((), ())


class Presence:
    """The conversation; a context manager that talks while it is open, or stepped by hand.

    Args:
        folder: the courier's own.
        audit: the courier's log (`courier_log`).
        release: what is installed here.
        proxy: the hospital's.
        clock: seconds since 1970; pauses are counted by it, too.
        line: makes a line to the control service, to the door for enrolment if told so.
    """

    def __init__(
        self, folder: Path, identity: SiteIdentity, *, audit: AuditLog, release: str, trainer: Trainer | None = None,
        proxy: Proxy | None = None, pace: Pace | None = None, clock: Callable[[], float] = time.time,
        line: Callable[[SiteIdentity, bool], ControlLine] | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._identity, self._release = folder, identity, release
        self._trainer, self._pace, self._clock = trainer or Trainer(), pace or Pace(), clock
        self._make_line = line or (lambda who, enrolling: ControlLine(who, enrolling=enrolling, proxy=proxy))
        site = identity.settings.site if identity.settings.role is Role.SITE else ""
        self.inbox = Inbox(folder, site=site, release=release)
        self.exchange = AuditExchange(audit, self.inbox, every_s=self._pace.audit_s, clock=clock)
        self._line: ControlLine | None = None
        self._failures, self._fetched, self._renewed = 0, float("-inf"), float("-inf")
        self._studies: dict[str, StudyStatus] = {}
        self._status = CourierStatus(site=identity.settings.site, time=clock(), stage="", words="starting")
        self._written: CourierStatus | None = None
        self._over, self._connected = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    # --- life ---

    def __enter__(self) -> Self:
        for work in (self._run, self._follow):
            thread = threading.Thread(target=work, name="presence", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._connected.set()  # whoever waits for it looks
        self.close()
        for thread in self._threads:
            thread.join(self._pace.join_s)

    def close(self) -> None:
        """End the line; the next step makes a new one."""
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.__exit__(None, None, None)

    @property
    def status(self) -> CourierStatus:
        """How things are."""
        return self._status

    def _run(self) -> None:
        while not self._over.wait(self.step()):
            pass
        self.close()
        self._note("the courier has ended", False, ())

    # --- one step ---

    def step(self) -> float:
        """Do what is due; returns how many seconds to wait before the next one. Never raises an expected error."""
        notices: list[str] = []
        standing = self._identity.standing()
        wait, words, connected = self._pace.beat_s, "", False
        try:
            if standing.stage in (Stage.EXPIRED, Stage.NOT_YET_VALID):
                self.close()
                words, wait = standing.words, self._pace.most_s
            elif standing.stage is Stage.ENROLLING:
                words = self._enrol()
            else:
                if standing.stage is Stage.RENEW:
                    notices += self._renew()
                notices += self._beat()
                notices += self._documents()
                words, connected = "connected", True
            self._failures = 0
        except MammoFedError as error:
            words, wait = str(error), self._after_failure(error)
        except Exception:  # an error of ours; the site must not fall silent because of it
            log.exception("a step of the conversation failed")
            words, wait = "this release has failed on the conversation with the coordinator; see its log", _PATIENCE_S
            self.close()
        if not self._over.is_set():  # what broke because it ends is no news
            self._note(words, connected, notices)
        return wait

    def _after_failure(self, error: MammoFedError) -> float:
        """Twice as long each time, and by chance a little less, so that sites do not come back all at once."""
        self._failures += 1
        if isinstance(error, CertificateError):
            self.close()  # with the next connection the newest certificate is shown
        longest = min(self._pace.beat_s * 2.0 ** min(self._failures - 1, 10), self._pace.most_s)
        return longest * random.uniform(0.5, 1.0)

    def _enrol(self) -> str:
        """Ask for the certificate; returns words while a person has to compare the fingerprints."""
        request = self._identity.request()
        if request is None:
            return "enrolled"
        with self._make_line(self._identity, True) as line:
            answer = line.client.enrol(request)
        if not self._accept(answer):
            return "waits for the coordinator to compare the six words of this site's keys: call them"
        return "enrolled"

    def _renew(self) -> list[str]:
        """Ask for the next certificate; what goes wrong is a notice: the old one is still good."""
        if 0 <= self._clock() - self._renewed < self._pace.renew_s:
            return []
        self._renewed = self._clock()
        try:
            request = self._identity.request()
            if request is not None and self._accept(self._client().renew(request)):
                self.close()  # the new one is shown from now on
                self._renewed = float("-inf")
            return []
        except MammoFedError as error:
            return [f"the certificate could not be renewed: {error}"]

    def _accept(self, answer: bytes) -> bool:
        """Take a certificate, after whose coordinator it is was compared with what is known."""
        reply = decode(answer, EnrolReply)
        if reply.status == "issued":
            self.inbox.pin(reply.coordinator)
        taken = self._identity.accept(answer)
        if taken:
            self.exchange.audit.append("certificate_taken")
        return taken

    def _beat(self) -> list[str]:
        approved, declined = self._trainer.decided()
        notices: list[str] = []
        logs = [self.exchange.courier_says()]
        state = self._trainer.state()
        if self._trainer.audit is not None and state.up:
            logs += self.exchange.trainer_says(self._trainer.audit, notices)
        request = BeatRequest(time=self._clock(), release=self._release, trainer=state, approved=tuple(approved),
                              declined=tuple(declined), logs=tuple(logs))  # fmt: skip
        reply = self._client().beat(request)
        self._connected.set()
        self._heard(reply, notices)
        return notices

    def _heard(self, reply: BeatReply, notices: list[str]) -> None:
        now = self._clock()
        notices += map(plain, reply.notices)
        notices += self.exchange.heard(reply.logs)
        self._status = self._status.model_copy(update={
            "heard": now, "clock_ahead": now - reply.time, "coordinator_release": plain(reply.release),
        })  # fmt: skip

    def _documents(self) -> list[str]:
        now = self._clock()
        if 0 <= now - self._fetched < self._pace.documents_s:
            return []
        notices: list[str] = []
        before: tuple[str, ...] | None = None
        while (have := self.inbox.have()) != before:  # each answer brings something new, or it was the last
            reply = self._client().documents(DocumentsRequest(have=have))
            notices += [plain(words) for words in self.inbox.take(reply.protocols, offered=reply.offered)]
            self.inbox.keep_members(reply.members)
            self._status = self._status.model_copy(update={"offered": reply.offered})
            before = have
            if not reply.protocols:
                break
        self._fetched = now
        return notices

    # --- events ---

    def _follow(self) -> None:
        """Keep the last event of each study, as the coordinator tells them."""
        while not self._over.is_set():
            self._connected.wait()
            try:
                after = {name: study.number for name, study in self._studies.items()}
                for event in self._client().watch(WatchRequest(after=after), stop=self._over):
                    if event.study in self._studies or len(self._studies) < MAX_PROTOCOLS:
                        self._studies[event.study] = _status_of(event, self._studies.get(event.study))
            except MammoFedError:
                pass  # the conversation says what is wrong with the line
            except Exception:  # an error of ours; what happens in studies is to be heard again all the same
                log.exception("following the studies failed; it is tried again")
            self._over.wait(self._pace.beat_s)

    # --- inside ---

    def _client(self) -> ControlClient:
        with self._lock:
            if self._line is None:
                if self._over.is_set():
                    raise TrainerError("presence ends")
                self._line = self._make_line(self._identity, False).__enter__()
            return self._line.client

    def _note(self, words: str, connected: bool, notices: Sequence[str]) -> None:
        """Put how things are into the file, when it is news or the last entry is old."""
        standing = self._identity.standing()
        if not connected:
            self._connected.clear()
        coordinator = None
        with contextlib.suppress(MammoFedError):
            coordinator = self.inbox.coordinator
        status = self._status.model_copy(update={
            "time": self._clock(), "stage": standing.stage.value, "days_left": standing.days_left, "words": words,
            "certificate": standing.words, "connected": connected, "notices": tuple(notices)[:20],
            "coordinator": coordinator.name if coordinator else "", "studies": dict(self._studies),
            "logs": self.exchange.status(),
        })  # fmt: skip
        if status.words != self._status.words or status.notices != self._status.notices:
            log.info("%s", "; ".join([words, *notices]))
        self._status = status
        same = self._written is not None and _news(status) == _news(self._written)
        if same and self._written is not None and 0 <= status.time - self._written.time < WRITE_S:
            return
        self._written = status
        try:
            write_private(self._folder / STATUS, status.model_dump_json(indent=1).encode())
        except MammoFedError as error:
            log.error("%s", error)


def _status_of(event: StudyEvent, before: StudyStatus | None) -> StudyStatus:
    return StudyStatus(
        number=event.number, time=event.time, severity=event.severity,
        round=max(event.round, before.round if before else 0),  # an event of the whole study has none
        words=plain(f"{event.kind} {event.code} {event.text}"), ended=event.kind == "finished",
    )  # fmt: skip


def _news(status: CourierStatus) -> CourierStatus:
    """A status without what changes at every step."""
    return status.model_copy(update={"time": 0.0, "heard": 0.0, "clock_ahead": 0.0, "days_left": 0.0})
