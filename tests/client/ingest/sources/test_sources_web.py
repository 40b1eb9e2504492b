"""DICOMweb against servers that are slow, wrong, hostile or only different; each is a real one on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ingest.sources import DicomWebSource, Received
from client.ingest.sources.retry import Backoff, LostError
from client.ingest.sources.web import Answer, Web, only_part
from shared_model.errors import SourceError
from tests.films import write_film
from tests.pacs_films import PERIOD, HashingDeidentifier, film

Reply = tuple[int, dict[str, str], bytes]


class Server:
    """Answers GETs by `answer`, which gets (path, query, headers) and may be changed by a test."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        self.answer: Callable[[str, dict[str, list[str]]], Reply] = lambda _path, _query: (204, {}, b"")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = parse_qs(parts.query)
                outer.seen.append((parts.path, query, dict(self.headers)))
                status, headers, body = outer.answer(parts.path, query)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/dicom-web"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def element(vr: str, *values: object) -> dict[str, object]:
    return {"vr": vr, "Value": list(values)}


class Films:
    """A well-behaved archive with films, to be spoilt by a test. page: the longest list that it gives at once."""

    def __init__(self, folder: Path, count: int = 4) -> None:
        self.page, self.turns = 1000, True
        self.boundary, self.kind = "some boundary", "multipart"
        self.data: dict[str, bytes] = {}
        for number in range(count):
            ds = film(1, "L_CC", number=number + 1)
            self.data[str(ds.SOPInstanceUID)] = write_film(folder / "web.dcm", ds).read_bytes()
        self.study, self.series = str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID)
        self.spoil: Callable[[str, Reply], Reply] = lambda _path, reply: reply

    def __call__(self, path: str, query: dict[str, list[str]]) -> Reply:
        return self.spoil(path, self._reply(path, query))

    def _reply(self, path: str, query: dict[str, list[str]]) -> Reply:
        if path == "/dicom-web/studies":
            first, last = query["StudyDate"][0].split("-")
            items = [{"0020000D": element("UI", self.study)}] if first <= "20240302" <= last else []
        elif path.endswith("/series"):
            items = [{"0020000E": element("UI", self.series), "00080060": element("CS", "MG")}]
        elif path.endswith("/instances"):
            items = [{"00080018": element("UI", uid), "00080016": element("UI", "1.2.840.10008.5.1.4.1.1.1.2")}
                     for uid in self.data]  # fmt: skip
        else:
            return self._film(self.data[path.rpartition("/")[2]])
        start = int(query["offset"][0]) if self.turns else 0
        items = items[start : start + min(self.page, int(query["limit"][0]))]
        return 200, {"Content-Type": "application/dicom+json"}, json.dumps(items).encode()

    def _film(self, data: bytes) -> Reply:
        if self.kind == "single":
            return 200, {"Content-Type": "application/dicom"}, data
        mark = self.boundary.encode()
        body = b"--" + mark + b"\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--" + mark + b"--\r\n"
        return 200, {"Content-Type": f'multipart/related; type="application/dicom"; boundary="{self.boundary}"'}, body


@pytest.fixture
def films(tmp_path: Path, server: Server) -> Films:
    server.answer = Films(tmp_path)
    return server.answer


def collect(server: Server, tmp_path: Path, *, max_bytes: int = 1 << 24, retries: int = 1, **changes: Any) -> Any:
    entry = {"url": server.url, "studies": PERIOD, "quiet_seconds": 0, "timeout_seconds": 120, **changes}
    source = DicomWebSource(**entry)
    with Received(tmp_path / "store", max_bytes=max_bytes) as store:
        return source.collect(store, HashingDeidentifier(), backoff=Backoff(retries, first_seconds=0.01))


@pytest.mark.parametrize("kind", ["multipart", "single"])
def test_films_come_and_nothing_but_what_is_needed_is_asked(
    server: Server, films: Films, tmp_path: Path, kind: str
) -> None:
    films.kind = kind
    got = collect(server, tmp_path)
    assert (got.studies, got.films, got.new, got.incomplete) == (1, 4, 4, 0)
    for path, query, headers in server.seen:
        assert headers["Accept-Encoding"] == "identity" and "Authorization" not in headers
        if path.endswith("/studies"):
            assert query["fuzzymatching"] == ["false"] and query["ModalitiesInStudy"] == ["MG"]
    assert [query["StudyDate"] for path, query, _ in server.seen if path.endswith("/studies")] == [
        ["20240220-20240229"], ["20240301-20240331"], ["20240401-20240410"]]  # fmt: skip


@pytest.mark.parametrize("turns", [True, False])
def test_lists_come_page_by_page(server: Server, tmp_path: Path, turns: bool) -> None:
    films = Films(tmp_path, count=62)
    films.page, films.turns = 52 if turns else 1000, turns
    server.answer = films
    assert collect(server, tmp_path).new == 62


@pytest.mark.parametrize(("user", "header"), [("me", "Basic bWU6Y29ycmVjdCBob3JzZQ=="), (None, "Bearer correct horse")])
def test_a_secret_is_sent_and_never_follows_a_redirect(
    server: Server, films: Films, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str | None, header: str
) -> None:
    monkeypatch.setenv("ARCHIVE_SECRET", "correct horse")
    assert collect(server, tmp_path, user=user, secret={"env": "ARCHIVE_SECRET"}).new == 4
    assert {headers["Authorization"] for _, _, headers in server.seen} == {header}
    elsewhere = Server()
    films.spoil = lambda path, reply: (302, {"Location": elsewhere.url + path}, b"")
    try:
        with pytest.raises(SourceError, match="302") as raised:
            collect(server, tmp_path, user=user, secret={"env": "ARCHIVE_SECRET"})
        assert elsewhere.seen == [] and "horse" not in str(raised.value)
    finally:
        elsewhere.close()


@pytest.mark.parametrize(("status", "words"), [(401, "secret"), (403, "permitted"), (404, "path in url"), (400, "url")])
def test_a_refusal_says_what_to_do(server: Server, films: Films, tmp_path: Path, status: int, words: str) -> None:
    films.spoil = lambda path, reply: (status, {}, b"WINTERHALTER")
    with pytest.raises(SourceError, match=words) as raised:
        collect(server, tmp_path)
    assert "WINTERHALTER" not in str(raised.value) and len(server.seen) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_server_is_asked_again(server: Server, films: Films, tmp_path: Path, status: int) -> None:
    busy = [True, True]
    films.spoil = lambda path, reply: (status, {}, b"") if busy and busy.pop() else reply
    assert collect(server, tmp_path, retries=2).new == 4


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[1]", b"[" * 100000, b'[{"0020000D": {"Value": 3}}]', b"[null]"])
def test_an_answer_that_is_no_list_of_studies_ends_in_words(
    server: Server, films: Films, tmp_path: Path, body: bytes
) -> None:
    films.spoil = lambda path, reply: (200, {}, body)
    if body.startswith(b'[{"'):
        assert collect(server, tmp_path).incomplete == 1
    else:
        with pytest.raises(SourceError, match="no DICOM JSON"):
            collect(server, tmp_path)


def of_films(spoil: Callable[[Reply], Reply]) -> Callable[[str, Reply], Reply]:
    """Spoil the third film only."""
    return lambda path, reply: spoil(reply) if path.endswith(".0.3") else reply


@pytest.mark.parametrize(
    ("spoil", "failed", "incomplete"),
    [
        (lambda r: (404, {}, b""), {"not_delivered": 1}, 1),
        (lambda r: (500, {}, b""), {"not_delivered": 1}, 1),
        (lambda r: (406, {}, b""), {"unsupported_syntax": 1}, 1),
        (lambda r: (200, {"Content-Type": "text/html"}, b"<html>sorry</html>"), {"damaged": 1}, 0),
        (lambda r: (200, {"Content-Type": "multipart/related"}, r[2]), {"not_delivered": 1}, 1),
        (lambda r: (200, {"Content-Type": "multipart/related; boundary=zz"}, r[2]), {"not_delivered": 1}, 1),
        (lambda r: (200, r[1], r[2][:-300]), {"not_delivered": 1}, 1),
        (lambda r: (200, {**r[1], "Content-Length": str(len(r[2]) + 1000), "Connection": "close"}, r[2]),
         {"not_delivered": 1}, 1),
        (lambda r: (200, {**r[1], "Content-Encoding": "gzip"}, r[2]), {"not_delivered": 1}, 1),
        (lambda r: (200, r[1], r[2] + b"x" * (2 << 20)), {"too_large": 1}, 0),
    ],
)  # fmt: skip
def test_one_bad_film_does_not_keep_the_others(
    server: Server, films: Films, tmp_path: Path, spoil: Callable[[Reply], Reply], failed: dict[str, int],
    incomplete: int,
) -> None:  # fmt: skip
    films.spoil = of_films(spoil)
    got = collect(server, tmp_path, max_bytes=1 << 20)
    assert (got.new, got.failed, got.incomplete) == (3, failed, incomplete)


def test_a_server_that_says_nothing_is_given_up(server: Server, films: Films, tmp_path: Path) -> None:
    tried = threading.Event()

    def wait(path: str, reply: Reply) -> Reply:
        tried.wait(60)
        return reply

    films.spoil = wait
    try:
        with pytest.raises(SourceError, match="no answer"):
            collect(server, tmp_path, timeout_seconds=0.2)
    finally:
        tried.set()


def test_an_answer_that_stops_in_the_middle_is_not_waited_for(server: Server) -> None:
    server.answer = lambda path, query: (200, {"Content-Length": "2000"}, b"x" * 1000)
    with Web("it", context=None, headers={}, timeout_seconds=1.0) as web, pytest.raises(LostError):
        web.get(server.url, accept="*/*", max_bytes=1 << 20)


def test_nobody_there_and_certificates(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no answer"):
        collect(server, tmp_path, url="http://127.0.0.1:9/x")
    with pytest.raises(SourceError):  # it speaks no TLS
        collect(server, tmp_path, url=server.url.replace("http:", "https:"), timeout_seconds=2)


@given(st.binary(max_size=300), st.text(st.sampled_from("abc09'()+_,-./:=? "), min_size=1, max_size=70))
def test_a_part_is_what_was_put_in(data: bytes, boundary: str) -> None:
    boundary = boundary.strip() or "b"
    mark = b"\r\n--" + boundary.encode()
    body = b"preamble" + mark + b"\r\nA: b\r\nC: d\r\n\r\n" + data + mark + b"--"
    answer = Answer(200, f'Multipart/Related; boundary="{boundary}"; type="application/dicom"', body)
    if mark not in data:
        assert only_part(answer) == data


@given(st.binary(max_size=200), st.sampled_from(["", " boundary=", "boundary=a"]).map("multipart/related;".__add__))
def test_any_bytes_are_a_part_or_an_error_without_text(body: bytes, kind: str) -> None:
    try:
        assert isinstance(only_part(Answer(200, kind, body)), bytes)
    except ValueError as error:
        assert str(error) in ("no boundary", "no whole part")
