"""Tells of alarms, into the log, to a webhook, a command: when one begins, now and then while it stands, at its end.

Where it is told comes from the coordinator's own file alone (`server.monitor.rules.Send`). A site's name and what a
rule says go into one JSON document, which is a request's body or a command's standard input: never a URL, an argument,
a header, or a shell's word. Everything has a time limit, and so has the number of messages in an hour.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import urllib3

from server.monitor.alarms import TOGETHER, many_words
from server.monitor.rules import Command, Send, Webhook
from server.monitor.view import AlarmView
from shared_model.control import plain
from shared_model.private_files import read_private

HOUR_S: Final = 3600.0
MAX_TOKEN_BYTES: Final = 4096
LEVELS: Final[Mapping[str, int]] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

log = logging.getLogger("mammofed.monitor")


What = Literal["begins", "stands", "over"]
Key = tuple[str, str, str | None]  # study, rule, site


@dataclass(frozen=True, kw_only=True)
class Told:
    """One message. what: the alarm begins, still stands, or is over. since: seconds since 1970."""

    what: What
    study: str
    alarm: AlarmView
    since: float
    now: float

    def document(self) -> bytes:
        """As JSON; every text one line of printable characters."""
        alarm = self.alarm
        values = {
            "schema_version": 1, "what": self.what, "study": plain(self.study), "rule": alarm.rule,
            "severity": alarm.severity, "text": plain(alarm.text), "site": plain(alarm.site) if alarm.site else None,
            "round": alarm.round, "since": self.since, "time": self.now,
        }  # fmt: skip
        return json.dumps(values).encode()

    def line(self) -> str:
        """For a log."""
        over = " is over" if self.what == "over" else ""
        return f"alarm {self.alarm.rule}{over}, study {plain(self.study)}: {plain(self.alarm.text)}"


Channel = Callable[[Told], None]


@dataclass
class _Standing:
    """An alarm that stands. since: as it says, else when it was first seen; told: when last, None: not yet."""

    alarm: AlarmView
    since: float
    seen: float
    told: float | None = None


class Notifier:
    """Remembers which alarms stand, and tells what changes.

    Args:
        channels: beside the log, by name; from :func:`channels_of`. One that fails is said in the log once.
        clock: seconds since 1970.
    """

    def __init__(
        self, send: Send, *, channels: Mapping[str, Channel] | None = None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._send, self._clock = send, clock
        self._channels = channels_of(send) if channels is None else channels
        self._stand: dict[Key, _Standing] = {}
        self._sent: deque[float] = deque()
        self._faults: set[str] = set()

    def tell(self, study: str, alarms: Sequence[AlarmView], *, last: bool = False) -> list[AlarmView]:
        """Tell what has changed; the alarms again, each with the moment since when it stands.

        last: nobody looks again, so that an alarm is told though it is young.
        """
        now, messages, found = self._clock(), list[Told](), dict[Key, AlarmView]()
        for alarm in alarms:
            found.setdefault((study, alarm.rule, alarm.site), alarm)
        for key, alarm in found.items():
            there = self._stand.setdefault(key, _Standing(alarm, alarm.since or now, seen=now))
            there.alarm = alarm
            what = self._due(there, now=now, last=last)
            if what is not None:
                there.told = now
                messages.append(Told(what=what, study=study, alarm=alarm, since=there.since, now=now))
        for key in [key for key in self._stand if key[0] == study and key not in found]:
            there = self._stand.pop(key)
            if there.told is not None:
                messages.append(Told(what="over", study=study, alarm=there.alarm, since=there.since, now=now))
        for told in _together(messages):
            self._out(told)
        return [replace(alarm, since=self._stand[key].since) for key, alarm in found.items()]

    def _due(self, there: _Standing, *, now: float, last: bool) -> What | None:
        """What is to be told of an alarm that stands; None: nothing now."""
        if there.told is None:
            return "begins" if last or now - there.seen >= self._send.hold_s else None
        repeat_s = self._send.repeat_h * HOUR_S
        return "stands" if 0 < repeat_s <= now - there.told else None

    def _out(self, told: Told) -> None:
        if self._send.log:
            level = logging.INFO if told.what == "over" else LEVELS[told.alarm.severity]
            log.log(level, "%s", told.line())
        if not self._channels:
            return
        while self._sent and self._sent[0] <= told.now - HOUR_S:
            self._sent.popleft()
        if len(self._sent) >= self._send.most_an_hour:
            self._fault("most_an_hour", f"more than {self._send.most_an_hour} alarms in an hour: the rest is logged")
            return
        self._faults.discard("most_an_hour")
        self._sent.append(told.now)
        for name, channel in self._channels.items():
            try:
                channel(told)
            except Exception as error:  # another machine, or another program: the watch goes on
                self._fault(name, f"alarms cannot be told by {name}: {type(error).__name__}: {error}")
            else:
                self._faults.discard(name)

    def _fault(self, name: str, words: str) -> None:
        if name not in self._faults:
            log.error("%s", plain(words))
        self._faults.add(name)


def _together(messages: Sequence[Told]) -> Iterator[Told]:
    """Where something befalls many sites at once (a network, an hour's end), one message instead of fifty."""
    groups: dict[tuple[str, str, str], list[Told]] = {}
    for told in messages:
        groups.setdefault((told.what, told.alarm.rule, told.alarm.severity), []).append(told)
    for group in groups.values():
        if len(group) <= TOGETHER:
            yield from group
            continue
        text = many_words([told.alarm.site or "?" for told in group], group[0].alarm.text)
        since = min(told.since for told in group)
        yield replace(group[0], alarm=replace(group[0].alarm, site=None, text=text), since=since)


def channels_of(send: Send) -> dict[str, Channel]:
    """The channels that the file asks for."""
    found: dict[str, Channel] = {}
    if send.webhook is not None:
        webhook = send.webhook
        found["webhook"] = lambda told: post(webhook, told.document())
    if send.command is not None:
        command = send.command
        found["command"] = lambda told: run(command, told.document())
    return found


def post(webhook: Webhook, document: bytes) -> None:
    """POST a document: one attempt, no redirection, the answer's body is not read.

    Raises:
        OSError, urllib3.exceptions.HTTPError: it did not arrive. StorageError: the token cannot be read.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "mammofed"}
    if webhook.token_file is not None:
        token = read_private(webhook.token_file, limit=MAX_TOKEN_BYTES).decode("ascii").strip()
        headers["Authorization"] = f"Bearer {token}"
    timeout = urllib3.Timeout(total=webhook.timeout_s)
    with urllib3.PoolManager(retries=False, timeout=timeout, cert_reqs="CERT_REQUIRED") as pool:
        answer = pool.request("POST", webhook.url, body=document, headers=headers, redirect=False,
                              preload_content=False)  # fmt: skip
        answer.release_conn()
    if not 200 <= answer.status < 300:
        raise OSError(f"the webhook answers {answer.status}")


def run(command: Command, document: bytes) -> None:
    """Run a command with a document on its standard input; it and what it started end at the time limit.

    Raises:
        OSError: it cannot be started, failed, or did not end in time.
    """
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    with subprocess.Popen(list(command.argv), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/",
                          stderr=subprocess.DEVNULL, env=environment, start_new_session=True) as process:  # fmt: skip
        try:
            process.communicate(document, timeout=command.timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise OSError(f"{command.argv[0]} did not end within {command.timeout_s:g} s") from None
    if process.returncode:
        raise OSError(f"{command.argv[0]} ended with {process.returncode}")
