"""The monitor's routes: that they only read, who is let in, what is pushed, and that hostile words stay words."""

from __future__ import annotations

import json
import re
import ssl
import stat
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from server.monitor.codes import EVENT_CODES, explanations
from server.monitor.view import RoundView, StudyView
from server.monitor.web.app import STATIC, create_app, static
from server.monitor.web.guard import Guard, check_exposure, is_loopback
from server.monitor.web.runs import Runs
from server.monitor.web.serve import Door, serve, token_of
from server.monitor.web.wire import LETTERS, Sender, round_line
from server.rounds.states import StudyStep
from shared_model.errors import ConfigError
from simulations.benchmarks.staged_run import StagedRun, staged_protocol
from tests.browser import served
from tests.enrolled import HANG_S

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("localhost", "127.0.0.1")
TOKEN = "a-token-that-is-long-enough"
NASTY = "<img src=x onerror=alert(1)>\"';--</script>&\u202e"


def staged(folder: Path, name: str = "run", *, rounds: int = 3) -> StagedRun:
    run = StagedRun(folder / name, staged_protocol(sites=("north", "south"), rounds=rounds), started=1.8e9)
    run.begin()
    return run


def client(place: Path, **settings: Any) -> TestClient:
    app = create_app(Runs(place), hosts=NAMES, look_s=0.01, **settings)
    return TestClient(app, base_url="http://127.0.0.1:8787")


# --- reading only ---


def test_every_route_reads_and_the_list_of_them_is_this(tmp_path: Path) -> None:
    app = create_app(Runs(tmp_path), hosts=NAMES)
    routes = {route.path: route.methods for route in app.routes if isinstance(route, APIRoute)}
    assert set(routes) == {
        "/", "/static/{name}", "/api/runs", "/api/view", "/api/round", "/api/events", "/api/codes", "/api/stream",
        "/metrics",
    }  # fmt: skip
    assert len(app.routes) == len(routes)  # no documentation pages, no mounts, no websockets
    assert {frozenset(methods) for methods in routes.values()} == {frozenset({"GET"})}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_any_other_method_is_refused_everywhere(tmp_path: Path, method: str) -> None:
    for path in ("/", "/api/view?run=run", "/static/main.js", "/metrics", "/nowhere"):
        assert client(tmp_path).request(method, path).status_code == 405


def test_reading_all_of_it_changes_no_file(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    page = client(tmp_path / "run")
    for path in ("/", "/api/runs", "/api/view?run=run", "/api/round?run=run&number=1", "/api/events?run=run",
                 "/api/codes"):  # fmt: skip
        assert page.get(path).status_code == 200, path
    after = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*"))
             if path.is_file() and path.suffix not in (".sqlite-wal", ".sqlite-shm")}  # fmt: skip
    assert after == before


@pytest.mark.parametrize("name", ["../run", "..", "", "/etc", "run/..", "nowhere", "run%00", "a" * 201])
def test_only_names_that_were_found_are_looked_up(tmp_path: Path, name: str) -> None:
    with staged(tmp_path):
        pass
    (tmp_path / "private").mkdir()
    for route in ("view", "events", "stream"):
        assert client(tmp_path / "run").get(f"/api/{route}", params={"run": name}).status_code in (404, 422)
    assert client(tmp_path).get("/api/view", params={"run": "private"}).status_code == 404
    assert client(tmp_path).get("/static/..%2Fapp.py").status_code == 404


# --- who is let in ---


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "10.0.0.1:8787", "[::2]:8787"])
def test_a_name_that_is_not_ours_is_refused(tmp_path: Path, host: str) -> None:
    assert client(tmp_path).get("/", headers={"host": host}).status_code == 421


def test_every_answer_carries_the_strict_headers(tmp_path: Path) -> None:
    page = client(tmp_path)
    for answer in (page.get("/"), page.get("/nowhere"), page.post("/"), page.get("/", headers={"host": "evil"})):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy and "form-action 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_with_a_token_nobody_reads_without_it(tmp_path: Path) -> None:
    with staged(tmp_path):
        pass
    page = client(tmp_path, token=TOKEN)
    for path in ("/", "/api/runs", "/api/stream?run=run", "/metrics", "/static/main.js", f"/?token={TOKEN[:-1]}",
                 f"/?token={TOKEN}&token={TOKEN}"):  # fmt: skip
        assert page.get(path).status_code == 401, path
    assert page.get("/api/runs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert page.get("/api/runs", headers={"authorization": f"Bearer {TOKEN}x"}).status_code == 401
    there = page.get(f"/?token={TOKEN}", follow_redirects=False)
    assert there.status_code == 303 and there.headers["location"] == "/"
    cookie = there.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert page.get("/api/runs").status_code == 200  # the cookie
    assert "Secure" in client(tmp_path, token=TOKEN, secure=True).get(
        f"/?token={TOKEN}", follow_redirects=False).headers["set-cookie"]  # fmt: skip


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "fl.example.org", "192.168.0.7", "128.0.0.1"])
def test_off_this_machine_it_needs_tls_and_a_token(tmp_path: Path, host: str) -> None:
    for tls, token in ((False, None), (True, None), (False, TOKEN)):
        with pytest.raises(ConfigError, match="open to others"):
            check_exposure(host, tls=tls, token=token)
    check_exposure(host, tls=True, token=TOKEN)
    with pytest.raises(ConfigError, match="too short"):
        check_exposure(host, tls=True, token="short")
    with pytest.raises(ConfigError, match="open to others"):
        serve(Runs(tmp_path), Door(host=host, port=0), say=lambda _: None)
    assert not is_loopback(host) and is_loopback("127.0.0.9") and is_loopback("::1") and is_loopback("localhost")


def test_a_token_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = token_of(path)
    assert len(token) >= 24 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_of(path) == token


def test_it_is_served_over_tls_with_the_certificate_given(tmp_path: Path) -> None:
    from tests.certificates_for_tests import self_signed

    with staged(tmp_path):
        pass
    cert, key = self_signed(tmp_path / "tls")
    with served(tmp_path / "run", cert=cert, key=key, token=TOKEN) as url:
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(cert))
        request = urllib.request.Request(url.replace(f"?token={TOKEN}", "api/runs"),
                                         headers={"Authorization": f"Bearer {TOKEN}"})  # fmt: skip
        with urllib.request.urlopen(request, context=context, timeout=HANG_S) as answer:
            assert json.load(answer)["first"] == "run"
            assert answer.headers["strict-transport-security"]
    with pytest.raises(ConfigError, match="no certificate"):
        serve(Runs(tmp_path), Door(port=0, cert=key, key=cert), say=lambda _: None)
    with pytest.raises(ConfigError, match="belong together"):
        serve(Runs(tmp_path), Door(port=0, cert=cert), say=lambda _: None)


def test_a_taken_port_is_said_in_words(tmp_path: Path) -> None:
    with served(tmp_path) as url, pytest.raises(ConfigError, match="cannot listen"):
        serve(Runs(tmp_path), Door(port=int(url.rsplit(":", 1)[1].strip("/"))), say=lambda _: None)


def test_a_websocket_gets_no_answer(tmp_path: Path) -> None:
    import asyncio

    called = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope)

    guard = Guard(inner, hosts=NAMES, token=None, secure=False)
    asyncio.run(guard({"type": "websocket"}, None, None))  # type: ignore[arg-type]
    assert not called


# --- what is pushed ---


def test_a_stream_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    run = staged(tmp_path)
    run.round(1)
    with served(tmp_path / "run") as url:
        first = stream_once(url, "")
        assert [r["n"] for r in first["rounds"]] == [0, 1] and first["whole"]
        run.round(2)
        second = stream_once(url, first["cursor"])
        assert [r["n"] for r in second["rounds"]] == [2] and not second["whole"]
        assert {event.get("round") for event in second["events"]} == {2}
    run.die()


def stream_once(url: str, cursor: str) -> dict[str, Any]:
    """The first message of a stream, over a real socket."""
    request = urllib.request.Request(f"{url}api/stream?run=run", headers={"Last-Event-ID": cursor} if cursor else {})
    with urllib.request.urlopen(request, timeout=HANG_S) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                return dict(json.loads(line[6:]))
    raise AssertionError("the stream ended")


def test_only_what_changed_is_sent(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        runs = Runs(tmp_path / "run", clock=lambda: run.now)
        sender = Sender()
        view = runs.read("run", None)
        assert view is not None
        first = sender.message(view)
        assert first is not None and first["names"] == ["north", "south"] and first["head"]["planned"] == 3
        assert sender.message(runs.read("run", view.cursor)) is None  # type: ignore[arg-type]
        run.open(1)
        new = runs.read("run", view.cursor)
        assert new is not None
        second = sender.message(new)
        assert second is not None and set(second["head"]) < set(first["head"]) and "strategy" not in second["head"]
        assert second["rounds"][0]["o"] == "??" and len(json.dumps(second)) < len(json.dumps(first))


def test_letters_are_one_for_each_outcome() -> None:
    from typing import get_args

    from server.monitor.view import Outcome

    assert set(LETTERS) == set(get_args(Outcome)) and len(set(LETTERS.values())) == len(LETTERS)
    script = static("words.js").decode()
    for outcome, letter in LETTERS.items():
        assert f'{letter}: {{ name: "{outcome}"' in script or f'"{letter}": {{ name: "{outcome}"' in script
    assert round_line(RoundView(number=1), ["a", "b"])["o"] == "  "


def test_events_are_searched_and_come_page_by_page(tmp_path: Path) -> None:
    with staged(tmp_path, rounds=60) as run:
        for number in range(1, 50):
            run.round(number, outcomes={"south": ("late", "late: nothing")} if number == 7 else None)
    page = client(tmp_path / "run")

    def find(**query: object) -> Any:
        return page.get("/api/events", params={"run": "run", **query}).json()

    assert [e["round"] for e in find(text="SOUTH late")["events"]] == [7]
    assert {e["severity"] for e in find(severity="warning")["events"]} == {"warning"}
    everything, before = [], 0
    while True:
        found = find(before=before)
        everything += [event["id"] for event in found["events"]]
        if not found["more"]:
            break
        before = everything[-1]
    assert everything == list(range(everything[0], 0, -1))
    assert find(text="nothing like it")["events"] == []


# --- words ---


def test_every_code_that_the_loop_writes_is_explained() -> None:
    files = (path for folder in ("rounds", "aggregation") for path in (ROOT / "server" / folder).glob("*.py"))
    text = "".join(path.read_text() for path in files)
    used = set(re.findall(r'code="([a-z_]+)"', text)) | set(re.findall(r'return "([a-z_]+)", f?"', text))
    used |= {"late", "failed", "refused", "abstained", *(step.value for step in StudyStep if step in (
        StudyStep.COMPLETE, StudyStep.GIVE_UP, StudyStep.STOP))}  # fmt: skip
    assert used <= set(EVENT_CODES), used - set(EVENT_CODES)
    words = explanations()
    assert words["61"].startswith("QuorumError: ") and "To do:" in words["41"] and "130" in words


def test_hostile_words_leave_as_data_and_no_page_holds_them(tmp_path: Path) -> None:
    with staged(tmp_path, NASTY.replace("/", "_")) as run:
        run.round(1, outcomes={"north": ("failed", NASTY)})
        with run.journal.entry():
            run.note("site_present", NASTY, site=NASTY, code=NASTY, data={NASTY: NASTY})
    page = client(tmp_path)
    name = page.get("/api/runs").json()["first"]
    assert name == NASTY.replace("/", "_")
    answer = page.get("/api/view", params={"run": name})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["events"][-1]["site"] == NASTY
    assert b"onerror" not in page.get("/").content


def test_the_page_has_no_inline_script_style_or_address(tmp_path: Path) -> None:
    html = static("index.html").decode()
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", html)
    assert set(re.findall(r'(?:src|href)="(/static/[^"]+)"', html)) <= {f"/static/{name}" for name in STATIC}
    for name in STATIC:
        text = static(name).decode()
        found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text)) - {"//www.w3.org/2000/svg"}
        assert not {a for a in found if "w3.org" not in a}, found
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        assert not re.search(forbidden, text), name
    assert {path.name for path in (ROOT / "server/monitor/web/static").iterdir()} == {*STATIC, "index.html"}


def test_metrics_are_served_where_somebody_renders_them(tmp_path: Path) -> None:
    with staged(tmp_path, "a"), staged(tmp_path, "b"):
        pass
    seen: list[StudyView] = []

    def render(views: Any) -> bytes:
        seen.extend(views)
        return b"mammofed_up 1\n"

    assert client(tmp_path).get("/metrics").status_code == 404
    answer = client(tmp_path, metrics=render).get("/metrics")
    assert answer.content == b"mammofed_up 1\n"
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert {view.run for view in seen} == {"a", "b"}


def test_a_coordinators_home_shows_its_studies(tmp_path: Path) -> None:
    (tmp_path / "coordinator.json").write_text("{}")
    with staged(tmp_path / "studies", "density"):
        pass
    assert client(tmp_path).get("/api/runs").json()["first"] == "density"
