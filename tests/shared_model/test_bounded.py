"""Files that nobody trusts yet: read up to a limit, refused in the caller's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared_model.bounded import json_object, read_at_most
from shared_model.errors import ConfigError, StorageError


def test_a_file_of_just_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"1234")
    assert read_at_most(tmp_path / "x.json", 4, error=StorageError) == b"1234"


def test_a_larger_one_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"12345")
    with pytest.raises(StorageError, match=r"^the list .*x\.json is too large; expected: at most 4 bytes$"):
        read_at_most(tmp_path / "x.json", 4, error=StorageError, what=f"the list {tmp_path / 'x.json'}", remedy="wait")


def test_one_that_cannot_be_read_says_why_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read /.*/gone: No such file or directory; to do: make one$"):
        read_at_most(tmp_path / "gone", 4, error=ConfigError, remedy="make one")
    with pytest.raises(ConfigError, match=r"^cannot read /.*: Is a directory$"):
        read_at_most(tmp_path, 4, error=ConfigError)


@pytest.mark.parametrize(("data", "words"), [
    (b"{", "^the list is not JSON: "),
    (b"\xff", "^the list is not JSON: "), (b"[" * 100_000, "^the list is not JSON: "),
    (b"[]", "^the list is not a JSON object; found: list"),
])  # fmt: skip
def test_what_is_no_json_object_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        json_object(data, error=StorageError, source="the list")
    assert json_object(b'{"a": 1}', error=StorageError, source="the list") == {"a": 1}
