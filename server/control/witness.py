"""Audit logs of sites, witnessed by the coordinator's, and the other way round; called with each heartbeat.

The first sight of a party's log is pinned by an entry of the coordinator's own log: site, party, owner and key, and the
node key that the site was enrolled with. Another key or log after that is an alarm, unless a human has enrolled the
site anew since. A site is told of the coordinator's log only when it has news (`AuditLog.news`).
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shared_model.audit import AuditLog, Statement
from shared_model.certificates import Member
from shared_model.control import Party, PartyAnswer, PartyLog, plain
from shared_model.enrolment import courier_name
from shared_model.errors import AuditError, ControlError, SignatureError
from shared_model.signing import VerifyKey

PINNED: Final = "party_pinned"
SHORTENED: Final = "log_shortened"
PAUSE_S: Final = 30.0

log = logging.getLogger("mammofed.control")


@dataclass(frozen=True, kw_only=True)
class _Pin:
    """Whose log it is. node: SHA-256 of the node key that the site had when the log was first seen."""

    owner: str
    key: str
    node: str


class Witness:
    """The exchange of statements; safe between threads. Reads the whole log once, for what was pinned.

    Args:
        audit: the coordinator's own log.
        alarm: is told, once for each log, which site rewrote it, and in words; the daemon revokes it.
        pause_s: between two entries about one log; what comes earlier is asked for again. No site fills our disk.
        clock: seconds that only grow.
    """

    def __init__(
        self, audit: AuditLog, *, alarm: Callable[[str, str], None] = lambda site, words: None,
        pause_s: float = PAUSE_S, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._audit, self._alarm, self._lock = audit, alarm, threading.Lock()
        self._pause_s, self._clock = pause_s, clock
        self._recorded: dict[str, float] = {}
        self._pins: dict[tuple[str, str], _Pin] = {}
        self._alarmed: set[tuple[str, str, str]] = set()
        for entry in audit.entries():
            if entry.kind == PINNED:
                names = (str(entry.fields["site"]), str(entry.fields["party"]))
                self._pins[names] = _Pin(owner=str(entry.fields["owner"]), key=str(entry.fields["key"]),
                                         node=str(entry.fields["node"]))  # fmt: skip

    def exchange(
        self, member: Member, node: bytes, logs: Sequence[PartyLog]
    ) -> tuple[tuple[PartyAnswer, ...], list[str]]:
        """Take what a site says of its logs, and answer with how the coordinator's went on.

        Returns:
            answers, and notices in words where a log is not taken.

        Raises:
            StorageError: our disk refuses.
        """
        answers: list[PartyAnswer] = []
        notices: list[str] = []
        for one in logs:
            try:
                with self._lock:
                    self._take(member, hashlib.sha256(node).hexdigest(), one)
            except (AuditError, SignatureError, ControlError) as error:
                notices.append(plain(f"audit log of the {one.party}: {error}"))
            try:
                told = self._news(one.recorded)
            except AuditError as error:
                notices.append(plain(f"for the {one.party}: {error}"))
                told = None
            answers.append(PartyAnswer(party=one.party, since=self._audit.witnessed(one.owner), statement=told))
        return tuple(answers), notices

    def _news(self, recorded: int) -> Statement | None:
        if self._audit.news <= recorded <= self._audit.sequence:
            return None
        return self._audit.statement(recorded)

    def _take(self, member: Member, node: str, one: PartyLog) -> None:
        pin = self._pinned(member.site, node, one)
        if one.statement is None:
            return
        head = one.statement.signed.head
        key = VerifyKey.from_hex(pin.key)
        if head.sequence < self._audit.witnessed(pin.owner) and not self._audit.refuses(pin.owner):
            one.statement.signed.verify(key)
            words = f"its audit log ({one.party}) is shorter than what was recorded here"
            self._sound(member.site, one.party, "shortened", words)
            raise AuditError(words, found=head.sequence, expected=f"at least {self._audit.witnessed(pin.owner)}")
        now = self._clock()
        if now - self._recorded.get(pin.owner, float("-inf")) < self._pause_s:
            return
        before = self._audit.sequence
        try:
            self._audit.record(one.statement, owner=pin.owner, key=key)
            if self._audit.sequence > before:
                self._recorded[pin.owner] = now
        except AuditError as error:
            if self._audit.refuses(pin.owner):
                self._sound(member.site, one.party, "rewritten", str(error))
            raise

    def _pinned(self, site: str, node: str, one: PartyLog) -> _Pin:
        """The pin of this log; made at first sight.

        Raises:
            ControlError: the owner's name is not this party's own, or the log shows another key than before.
        """
        names = (site, one.party)
        there = self._pins.get(names)
        if there is not None and (there.owner, there.key) == (one.owner, one.key):
            return there
        own = courier_name(site) if one.party == "courier" else site
        taken = any(pin.owner == one.owner and at != names for at, pin in self._pins.items())  # a long name, cut
        if one.owner != own or taken or one.owner == self._audit.owner:
            raise ControlError("an audit log under the name of another party", reason="owner", found=one.owner,
                               expected=own)  # fmt: skip
        VerifyKey.from_hex(one.key)  # a key at all?
        if there is not None and there.node == node:
            words = f"the audit log of its {one.party} shows another owner or key than before"
            self._sound(site, one.party, "another_key", words)
            raise ControlError(words, reason="another_key", found=one.key[:16], expected=there.key[:16],
                               remedy="a new log is taken after the site was revoked and enrolled again")  # fmt: skip
        pin = _Pin(owner=one.owner, key=one.key, node=node)
        self._audit.append(PINNED, site=site, party=one.party, owner=pin.owner, key=pin.key, node=node)
        self._pins[names] = pin
        self._admit_anew(site, one)
        return pin

    def _admit_anew(self, site: str, one: PartyLog) -> None:
        """A human has enrolled the site anew: its new log begins, whatever became of the old one."""
        if self._audit.witnessed(one.owner):
            self._audit.admit(one.owner, one.log, reason=f"{site} was enrolled anew")

    def _sound(self, site: str, party: Party, what: str, words: str) -> None:
        if (site, party, what) in self._alarmed:
            return
        log.error("%s: %s", site, words)
        self._alarm(site, words)
        if what == "shortened":
            self._audit.append(SHORTENED, site=site, party=party, words=plain(words))
        self._alarmed.add((site, party, what))  # last: what could not be done now is done with the next heartbeat
