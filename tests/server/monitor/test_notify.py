"""Telling of alarms: once, bounded, in time; nothing of an alarm becomes an address, an argument or an order."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.monitor.notify import Notifier, Told, channels_of, post, run
from server.monitor.rules import Command, MonitorFile, Send, Webhook
from server.monitor.view import AlarmView
from shared_model.errors import StorageError
from shared_model.private_files import write_private

HOUR = 3600.0
PATIENCE_S = 60.0  # for what must happen: a busy machine starts a process late
HOSTILE = "$(touch /tmp/x); `id`\n\x1b[31m<script>alert(1)</script>"


def alarm(rule: str = "silent_site", **values: Any) -> AlarmView:
    return AlarmView(**({"rule": rule, "severity": "warning", "text": "north is silent", "site": "north"} | values))


def send(**changes: Any) -> Send:
    return MonitorFile.read().send.model_copy(update=changes)


class World:
    """A clock, a channel that remembers, a notifier."""

    def __init__(self, **changes: Any) -> None:
        self.now, self.told, self.fails = 1000.0, list[Told](), False
        self.notifier = Notifier(send(**{"hold_s": 0.0} | changes), channels={"ear": self.hear}, clock=lambda: self.now)

    def hear(self, told: Told) -> None:
        if self.fails:
            raise OSError("nobody answers")
        self.told.append(told)

    @property
    def heard(self) -> list[str]:
        return [told.what for told in self.told]


def test_an_alarm_is_told_when_it_begins_and_when_it_is_over() -> None:
    world = World()
    for alarms in ([alarm()], [alarm()], [], [], [alarm()]):
        world.notifier.tell("quick", alarms)
        world.now += 5
    assert world.heard == ["begins", "over", "begins"]
    assert [told.since for told in world.told] == [1000.0, 1000.0, 1020.0]


def test_an_alarm_that_is_over_at_once_is_not_told_unless_nobody_looks_again() -> None:
    world = World(hold_s=10.0)
    for alarms in ([alarm()], [], [alarm()], [alarm()]):
        world.notifier.tell("quick", alarms)
        world.now += 6
    assert world.heard == []
    world.notifier.tell("quick", [alarm()])
    assert world.heard == ["begins"] and world.told[0].since == 1012.0
    world.notifier.tell("quick", [alarm(), alarm(rule="study_failed")], last=True)
    assert world.told[-1].alarm.rule == "study_failed"


def test_what_stands_is_told_again_after_some_hours_or_never() -> None:
    for repeat, expected in ((12.0, ["begins", "stands"]), (0.0, ["begins"])):
        world = World(repeat_h=repeat)
        for _ in range(14):
            world.notifier.tell("quick", [alarm()])
            world.now += HOUR
        assert world.heard == expected


def test_studies_and_sites_are_kept_apart_and_the_moment_is_kept() -> None:
    world = World()
    world.notifier.tell("quick", [alarm(), alarm(site="south")])
    world.notifier.tell("other", [alarm()])
    world.now += 5
    (stands,) = world.notifier.tell("quick", [alarm(text="north is silent for longer")])
    assert world.heard == ["begins", "begins", "begins", "over"] and world.told[-1].alarm.site == "south"
    assert (stands.since, stands.text) == (1000.0, "north is silent for longer")


def test_too_many_in_an_hour_stay_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World(most_an_hour=3)
    with caplog.at_level(logging.INFO):
        world.notifier.tell("quick", [alarm(rule=f"rule_{i}") for i in range(10)])
    assert len(world.told) == 3
    assert sum("alarm rule_" in record.message for record in caplog.records) == 10
    assert sum("the rest is logged" in record.message for record in caplog.records) == 1
    world.now += HOUR
    world.notifier.tell("quick", [*(alarm(rule=f"rule_{i}") for i in range(10)), alarm()])
    assert len(world.told) == 4


def test_what_befalls_many_sites_at_once_is_one_message() -> None:
    world = World()
    world.notifier.tell("quick", [alarm(site=f"s{i:02d}", text=f"s{i:02d} is silent") for i in range(50)])
    (told,) = world.told
    assert told.alarm.site is None and told.alarm.text.startswith("50 sites: s00, s01, ")
    assert "s07 and 42 others; of the first: s00 is silent" in told.alarm.text
    world.now += 5
    world.notifier.tell("quick", [alarm(site="s00", text="s00 is silent")])
    assert world.heard == ["begins", "over"] and world.told[-1].alarm.text.startswith("49 sites: s01")


def test_a_channel_that_fails_is_said_once_and_never_again_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.fails = True
    with caplog.at_level(logging.ERROR):
        for name in ("a", "b", "c"):
            world.notifier.tell(name, [alarm()])
    assert [record.message for record in caplog.records] == ["alarms cannot be told by ear: OSError: nobody answers"]
    world.fails = False
    world.notifier.tell("d", [alarm()])
    assert world.heard == ["begins"]


def test_a_hostile_name_stays_one_printable_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    told = Told(what="begins", study=HOSTILE, alarm=alarm(text=HOSTILE, site=HOSTILE), since=1.0, now=2.0)
    document = json.loads(told.document())
    assert document["text"] == document["site"] == "$(touch /tmp/x); `id` ?[31m<script>alert(1)</script>"
    assert "\n" not in told.line() and "\x1b" not in told.line()


# --- webhook ---


@contextmanager
def listener(status: int = 200, *, location: str = "") -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    got: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, dict(self.headers), body))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_webhook_gets_one_document_with_its_token(tmp_path: Path) -> None:
    write_private(tmp_path / "token", b"secret\n")
    told = Told(what="begins", study="quick", alarm=alarm(text=HOSTILE), since=1.0, now=2.0)
    with listener() as (url, got):
        webhook = Webhook(url=url, token_file=tmp_path / "token", timeout_s=PATIENCE_S)
        channels_of(send(webhook=webhook))["webhook"](told)
    ((path, headers, body),) = got
    assert path == "/hook" and headers["Authorization"] == "Bearer secret" and body == told.document()
    assert all("script" not in value for value in headers.values())


@pytest.mark.parametrize("status", [301, 404, 500])
def test_an_answer_that_is_no_success_is_a_failure_and_no_redirection_is_followed(status: int) -> None:
    with (listener() as (elsewhere, there), listener(status, location=elsewhere) as (url, got),
          pytest.raises(OSError, match=str(status))):  # fmt: skip
        post(Webhook(url=url, timeout_s=PATIENCE_S), b"{}")
    assert len(got) == 1 and there == []


def test_a_token_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o644)
    with listener() as (url, got), pytest.raises(StorageError):
        post(Webhook(url=url, token_file=tmp_path / "token"), b"{}")
    assert got == []


# --- command ---


def script(folder: Path, code: str) -> tuple[str, ...]:
    (folder / "tell.py").write_text(code)
    return sys.executable, str(folder / "tell.py"), str(folder / "out")


def test_a_command_gets_the_document_on_its_input_and_nothing_in_its_arguments(tmp_path: Path) -> None:
    code = ("import json, os, sys\n"
            "open(sys.argv[1], 'w').write(json.dumps([sys.argv, sys.stdin.read(), dict(os.environ)]))")  # fmt: skip
    argv = script(tmp_path, code)
    told = Told(what="begins", study="quick", alarm=alarm(text=HOSTILE, site=HOSTILE), since=1.0, now=2.0)
    channels_of(send(command=Command(argv=argv, timeout_s=PATIENCE_S)))["command"](told)
    arguments, document, environment = json.loads((tmp_path / "out").read_text())
    assert arguments == [*argv[1:]] and document == told.document().decode()
    assert environment.keys() <= {"PATH", "LANG", "HOME", "LC_CTYPE"}


def test_a_command_that_fails_is_absent_or_hangs_is_a_failure_in_time(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ended with 3"):
        run(Command(argv=script(tmp_path, "raise SystemExit(3)"), timeout_s=PATIENCE_S), b"{}")
    with pytest.raises(OSError):
        run(Command(argv=(str(tmp_path / "absent"),)), b"{}")
    hang = ("import subprocess, sys, time\n"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)")  # fmt: skip
    with pytest.raises(OSError, match="did not end within"):
        run(Command(argv=script(tmp_path, hang), timeout_s=0.5), b"{}")


def test_a_command_that_does_not_read_its_input_is_no_failure(tmp_path: Path) -> None:
    run(Command(argv=script(tmp_path, "import os; os.close(0)"), timeout_s=PATIENCE_S), b"x" * 200_000)
