"""What a diagnosis says on a terminal, in a page and to a script, and what it never says outside."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from shared_model.doctor import Diagnosis, Level, examined
from shared_model.doctor.check import amber, green, red, without_places
from shared_model.doctor.page import as_html, as_json, headline, show
from shared_model.errors import DoctorError, StorageError

GREEN = green("dns", "DNS", "hub.example is known", local="10.1.2.3")
AMBER = amber("policy", "Policy", "no limit <script>alert(1)</script>", to_do="set one")
RED = red("disk", "Disk", "0.1 GiB free", to_do="make room")


def diagnosis(*checks: object) -> Diagnosis:
    return Diagnosis(who="north", role="site", release="0.1.0", when="2026-11-26 08:00 UTC", checks=checks)  # type: ignore[arg-type]


def test_the_worst_colour_decides_about_the_exit() -> None:
    assert diagnosis(GREEN).worst is Level.GREEN and headline(diagnosis(GREEN)) == "All is well."
    diagnosis(GREEN, AMBER).raise_if_red()
    with pytest.raises(DoctorError, match=r"1 of 3 checks are red; found: disk"):
        diagnosis(RED, GREEN, AMBER).raise_if_red()


def test_the_page_names_no_address_runs_nothing_and_loads_nothing() -> None:
    page = as_html(diagnosis(GREEN, AMBER, RED))
    assert "10.1.2.3" not in page and "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    assert page.index("0.1 GiB free") < page.index("no limit") < page.index("hub.example")
    assert as_html(diagnosis(GREEN, AMBER, RED)) == page


def test_scripts_get_the_same_and_no_more() -> None:
    document = json.loads(as_json(diagnosis(GREEN, RED)))
    assert (document["worst"], document["who"]) == ("red", "north")
    assert document["checks"][1] == {
        "name": "disk", "title": "Disk", "level": "red", "words": "0.1 GiB free", "to_do": "make room",
    }  # fmt: skip
    assert "10.1.2.3" not in as_json(diagnosis(GREEN, RED))


def test_the_terminal_shows_what_is_local_too() -> None:
    out = io.StringIO()
    show(diagnosis(GREEN, AMBER), Console(file=out, width=120))
    assert "10.1.2.3" in out.getvalue() and "Of 2 checks, 1 should be looked at." in out.getvalue()


def test_an_examination_that_breaks_is_a_finding_and_no_end() -> None:
    def broken() -> object:
        raise StorageError("/srv/st-mary/identity/tls.pem is open to uid 1001", found="mode 0644", remedy="chmod 600")

    def unreadable() -> object:
        raise PermissionError(13, "Permission denied", "/srv/st-mary/trainer")

    (first,) = examined("certificate", "Certificate", broken)  # type: ignore[arg-type]
    assert (first.level, first.words) == (Level.RED, "…/tls.pem is open to another user; found: mode 0644")
    assert "/srv/st-mary" in first.local and first.remedy == "chmod 600"
    (second,) = examined("cohort", "Cohort", unreadable)  # type: ignore[arg-type]
    assert second.level is Level.AMBER and "may not read" in second.words and "/srv" not in second.words

    def full() -> object:
        raise OSError(28, "No space left on device", "/srv/st-mary/x")

    (third,) = examined("disk", "Disk", full)  # type: ignore[arg-type]
    assert third.level is Level.RED and "No space left" in third.words and "/srv" not in third.words


@pytest.mark.parametrize(
    ("text", "public"),
    [("cannot read /srv/h/x.json: gone", "cannot read …/x.json: gone"), ("~/keys/a.pem", "…/a.pem"),
     ("24/7 and 1/2 and TLS 1.3", "24/7 and 1/2 and TLS 1.3"), ("ask for http://hub:1/x", "ask for http://hub:1/x")],
)  # fmt: skip
def test_places_are_left_out(text: str, public: str) -> None:
    assert without_places(text) == public
