"""A member's own monitor: what it makes of the watch stream, what it never shows, and that it goes on where it was."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from client.deploy.identity import SiteFile, SiteIdentity
from client.watch.run import check_address, follow
from client.watch.show import Screen, draw_study, line_of
from mammofed import cli
from server.control.service import ControlLimits
from shared_model.certificates import Role
from shared_model.control import StudyEvent
from shared_model.errors import CertificateError, ConfigError, ControlError
from shared_model.story import Story
from tests.controlled import Hub
from tests.enrolled import HANG_S


def told(number: int, kind: str, **values: Any) -> StudyEvent:
    return StudyEvent(**({"study": "quick", "number": number, "time": 1000.0 + number, "kind": kind,
                          "severity": "info"} | values))  # fmt: skip


def one_round() -> list[StudyEvent]:
    return [
        told(1, "study_started"), told(2, "round_opened", round=1, attempt=1),
        *(told(3 + i, "site_started", round=1, attempt=1, site=site) for i, site in enumerate(("north", "south"))),
        told(5, "site_replied", round=1, attempt=1, site="north",
             data={"outcome": "contributed", "seconds": 2.5, "epsilon": 6.6, "budget": 8.0}),
        told(6, "site_replied", round=1, attempt=1, site="south", severity="warning", code="late"),
        told(7, "evaluated", round=1, data={"auc_fused": 0.81}), told(8, "round_closed", round=1, attempt=1),
    ]  # fmt: skip


def story_of(events: list[StudyEvent], **options: Any) -> Story:
    story = Story("north", **options)
    for event in events:
        story.apply(event)
    return story


def text_of(story: Story, *, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(draw_study(story.studies["quick"], me=story.me, now=1010.0))
    return console.export_text()


def test_a_round_is_told_of_oneself_in_numbers_and_of_others_in_kinds() -> None:
    story = story_of(one_round(), rounds={"quick": 12})
    study = story.studies["quick"]
    assert (study.state, study.round, study.closed, study.rounds) == ("running", 1, 1, 12)
    assert (study.seconds, study.epsilon, study.budget, study.own) == (2.5, 6.6, 8.0, {1: "contributed"})
    assert study.sites == {"north": "contributed", "south": "late"} and study.auc == [(1, 0.81)]
    text = text_of(story)
    assert "round 1 of 12" in text and "epsilon 6.60 of 8.00" in text and "others: 1 late" in text
    assert "last heard 2 s ago" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal(width: int) -> None:
    assert max(map(len, text_of(story_of(one_round()), width=width).splitlines())) <= width


@pytest.mark.parametrize(("status", "word"), [("COMPLETE", "complete"), ("INCOMPLETE", "incomplete"),
                                              ("STOPPED", "stopped"), ("\x1b[2Jodd", "?[2Jodd")])  # fmt: skip
def test_each_end_has_its_own_word(status: str, word: str) -> None:
    study = story_of([*one_round(), told(9, "finished", data={"status": status})]).studies["quick"]
    assert study.state == word


def test_an_event_that_was_told_already_counts_once() -> None:
    story = story_of(one_round() + one_round())
    assert len(story.studies["quick"].auc) == 1 and story.after == {"quick": 8}


def test_hostile_words_are_neither_markup_nor_orders_to_the_terminal() -> None:
    hostile = told(9, "alarm", severity="error", site="[red]x[/red]\x1b[31m",
                   text="[blink]now[/blink]\x1b]0;t\x07\n2nd")
    story = story_of([*one_round(), hostile])
    text = text_of(story)
    assert "[blink]now[/blink]" in text and "\x1b]0" not in text and "\x07" not in text
    assert "\x1b" not in line_of(hostile) and "\n" not in line_of(hostile)


def test_numbers_that_are_none_and_names_without_end_are_not_kept() -> None:
    story = story_of([told(1, "site_replied", site="north", data={"outcome": "contributed", "seconds": "nan"}),
                      *(told(2 + i, "site_absent", site=f"s{i}") for i in range(1100))])  # fmt: skip
    assert story.studies["quick"].seconds is None and len(story.studies["quick"].sites) == 1000


@pytest.mark.parametrize("url", ["https://hub.example:8443", "https://HUB.example:8443/"])
def test_the_own_coordinator_s_address_is_taken(url: str) -> None:
    check_address(url, SiteFile(site="north", role=Role.SITE, host="hub.example", port=8443))


@pytest.mark.parametrize("url", [
    "http://hub.example:8443", "https://hub.example", "https://evil.example:8443", "https://hub.example:8443/page",
    "https://me@hub.example:8443", "https://hub.example:x", "hub", "https://[", "https://hub.example:8443?x=1",
])  # fmt: skip
def test_any_other_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected: https://hub.example:8443"):
        check_address(url, SiteFile(site="north", role=Role.SITE, host="hub.example", port=8443))


# --- over real doors ---


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path)
    with hub.open():
        yield hub


class Ears(Screen):
    """A screen that ends the watch after some events, and remembers what was said of the line."""

    def __init__(self, story: Story, *, enough: int, stop: threading.Event) -> None:
        super().__init__(story, console=Console(file=io.StringIO()))
        self.enough, self.stop, self.heard, self.lines = enough, stop, list[StudyEvent](), list[str]()

    def told(self, event: StudyEvent) -> None:
        self.heard.append(event)
        if len(self.heard) >= self.enough:
            self.stop.set()

    def line(self, words: str, *, up: bool) -> None:
        self.lines.append(words)


def listen(hub: Hub, identity: SiteIdentity, *, enough: int, story: Story | None = None) -> Ears:
    stop = threading.Event()
    ears = Ears(story or Story(identity.settings.site), enough=enough, stop=stop)
    follow(identity, ears._story, ears, stop=stop, line=hub.line, again_s=0.01)
    return ears


def test_a_member_hears_its_own_numbers_and_of_others_that_something_happened(hub: Hub) -> None:
    hub.offer()
    hub.board.tell("quick", kind="site_replied", site="south", round=1, attempt=1, code="late", text="private words",
                   data={"loss": 0.5})  # fmt: skip
    hub.board.tell("quick", kind="site_replied", site="north", round=1, attempt=1, data={"seconds": 1.5})
    ears = listen(hub, hub.home.enrol("north"), enough=2)
    south, north = ears.heard
    assert (south.text, south.data, north.data) == ("", {}, {"seconds": 1.5})
    assert ears._story.studies["quick"].sites == {"south": "late", "north": "contributed"}


def test_after_a_broken_line_it_goes_on_after_the_last_event(hub: Hub) -> None:
    hub.offer()
    north, story = hub.home.enrol("north"), Story("north")
    hub.board.tell("quick", kind="study_started")
    assert [event.number for event in listen(hub, north, enough=1, story=story).heard] == [1]
    hub.board.tell("quick", kind="round_opened", round=1, attempt=1)
    assert [event.number for event in listen(hub, north, enough=1, story=story).heard] == [2]


def test_while_the_coordinator_is_away_it_says_so_and_tries_again(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    with hub.open():
        north = hub.home.enrol("north")
        port = hub.gateway.port
    stop = threading.Event()
    ears = Ears(Story("north"), enough=1, stop=stop)
    thread = threading.Thread(target=follow, args=(north, ears._story, ears),
                              kwargs={"stop": stop, "line": hub.line, "again_s": 0.01})  # fmt: skip
    thread.start()
    while not any("tried again" in words for words in ears.lines):
        stop.wait(0.01)
    hub.offer()
    hub.board.tell("quick", kind="study_started")
    with hub.open(port=port):
        thread.join(HANG_S)
    assert not thread.is_alive() and len(ears.heard) == 1


def test_who_was_revoked_is_told_so_and_it_ends(hub: Hub) -> None:
    north = hub.home.enrol("north")
    hub.home.enrolment.revoke("north", reason="keys were lost")
    with pytest.raises(CertificateError):
        listen(hub, north, enough=1)


def test_a_third_watch_is_refused_in_words(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    none = ControlLimits(look_s=0.02, watches_per_site=0)
    with hub.open(control_limits=none), pytest.raises(ControlError, match="too many calls"):
        listen(hub, hub.home.enrol("north"), enough=1)


def test_the_command_refuses_what_is_no_site_s_home(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["site", "watch", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
