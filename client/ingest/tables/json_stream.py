"""Reads FHIR resources out of JSON files of any size, one at a time and bounded; called by fhir. No values in messages.

A Bundle of gigabytes is never in memory: its entries are parsed one by one. NDJSON (the FHIR Bulk Data format) has one
resource a line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MAX_FILE_BYTES = 1 << 34
MAX_RESOURCE = 8 << 20  # signs; a Patient has some 2,000, a DocumentReference with a scan in it may have millions
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonFaultError(ValueError):
    """The file is no JSON that is read here; the text is one of a few words of ours."""


def _no_constant(_: str) -> Any:
    raise JsonFaultError("not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def resources_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(fullUrl or "", resource) of a Bundle, of a single resource, or of NDJSON lines.

    Raises:
        JsonFaultError: no such file, after what came before the fault has been given out.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        if stream.seek(0, 2) > MAX_FILE_BYTES:
            raise JsonFaultError("too large")
        stream.seek(0)
        if path.suffix.casefold() == ".ndjson":
            yield from _lines(stream)
        else:
            yield from _bundle(_Text(stream))


def _lines(stream: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    while line := stream.readline(MAX_RESOURCE + 1):
        if len(line) > MAX_RESOURCE:
            raise JsonFaultError("a resource is too large")
        if line.strip():
            yield "", _as_resource(_parsed(line))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, JsonFaultError) else JsonFaultError("not JSON") from None


def _as_resource(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
        raise JsonFaultError("not a FHIR resource")
    return value


def _bundle(text: _Text) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries as they come; whether it is a Bundle is known only at the end, because keys have no order."""
    members: dict[str, Any] = {}
    size = 0
    text.expect("{")
    while not text.take("}"):
        if members:
            text.expect(",")
        key = text.value()
        if not isinstance(key, str) or key in members:
            raise JsonFaultError("not JSON")
        text.expect(":")
        if key == "entry" and text.take("["):
            yield from _entries(text)
            members[key] = None
            continue
        start = text.consumed
        members[key] = text.value()
        size += text.consumed - start
        if size > MAX_RESOURCE:
            raise JsonFaultError("a resource is too large")
    text.expect_end()
    if _as_resource(members)["resourceType"] != "Bundle":
        yield "", members


def _entries(text: _Text) -> Iterator[tuple[str, dict[str, Any]]]:
    first = True
    while not text.take("]"):
        if not first:
            text.expect(",")
        first = False
        entry = text.value()
        if not isinstance(entry, dict):
            raise JsonFaultError("not a FHIR resource")
        if "resource" in entry:  # entries of other lists, and deletions, have none
            url = entry.get("fullUrl")
            yield url if isinstance(url, str) else "", _as_resource(entry["resource"])


class _Text:
    """A window on the text of a file. What does not parse for want of more is tried again with twice as much, so a
    value is parsed about once however long it is. consumed: signs that have been parsed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._decode = stream, codecs.getincrementaldecoder("utf-8-sig")()
        self._held, self._at, self._ended = "", 0, False
        self.consumed = 0

    def _more(self, signs: int) -> bool:
        if self._ended:
            return False
        data = self._stream.read(max(signs, _CHUNK))
        self._ended = not data
        try:
            text = self._decode.decode(data, final=self._ended)
        except UnicodeDecodeError:
            raise JsonFaultError("not UTF-8") from None
        self._held, self._at = self._held[self._at :] + text, 0
        return True

    def _skip_space(self) -> None:
        while True:
            match = _SPACE.match(self._held, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._held) or not self._more(0):
                return

    def take(self, sign: str) -> bool:
        """Whether the next sign is this one; if so it is gone."""
        self._skip_space()
        found = self._held[self._at : self._at + 1] == sign
        self._at += found
        return found

    def expect(self, sign: str) -> None:
        if not self.take(sign):
            raise JsonFaultError("not JSON")

    def expect_end(self) -> None:
        self._skip_space()
        if self._at < len(self._held):
            raise JsonFaultError("not JSON")

    def value(self) -> Any:
        """The next value, whole."""
        self._skip_space()
        while True:
            try:
                found, end = _DECODER.raw_decode(self._held, self._at)
            except json.JSONDecodeError:
                held = len(self._held) - self._at
                if held > MAX_RESOURCE:
                    raise JsonFaultError("a resource is too large") from None
                if not self._more(held):
                    raise JsonFaultError("not JSON") from None
                continue
            except (ValueError, RecursionError):  # numbers of thousands of digits, nesting of thousands of levels
                raise JsonFaultError("not JSON") from None
            if end == len(self._held) and self._more(0):
                continue  # `12` may be the beginning of `123`
            if end - self._at > MAX_RESOURCE:
                raise JsonFaultError("a resource is too large")
            self.consumed += end - self._at
            self._at = end
            return found
