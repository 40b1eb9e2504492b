"""`verify` and its command: one changed byte anywhere is found and its line named; heads find what the chain cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.audit import AuditLog, Entry, SignedHead, Value, verify
from shared_model.audit.entries import MAX_LINE_BYTES, ZERO
from shared_model.errors import AuditError, SignatureError, StorageError
from shared_model.signing import SigningKey

KEY = SigningKey.generate()
MAMMOFED = [sys.executable, "-m", "mammofed", "audit", "verify"]


def make(path: Path, *, owner: str = "north", key: SigningKey = KEY) -> list[SignedHead]:
    """A log of five lines, and the head after each of them."""
    with AuditLog(path, owner=owner, key=key) as log:
        heads = [log.head()]
        for number, text in enumerate(("plain", 'quoted "\\ \n', "grün €", "")):
            log.append("said", n=number, text=text, share=0.1 * number, ok=True, nothing=None)
            heads.append(log.head())
    return heads


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[SignedHead]]:
    path = tmp_path_factory.mktemp("good") / "audit.jsonl"
    heads = make(path)
    return path.read_bytes(), heads


def bad_line(path: Path, data: bytes, **options: object) -> int:
    """Line that `verify` names for `data`; fails where it finds nothing."""
    path.write_bytes(data)
    with pytest.raises(AuditError) as caught:
        verify(path, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 71
    return caught.value.line


def test_a_good_log_is_good(tmp_path: Path, good: tuple[bytes, list[SignedHead]]) -> None:
    data, heads = good
    path = tmp_path / "audit.jsonl"
    path.write_bytes(data)
    found = verify(path, key=KEY.public, heads=heads)
    assert (found.owner, found.entries, found.heads, found.covered, found.repairs) == ("north", 5, 5, 5, 0)
    assert found.sha256 == heads[-1].head.sha256 and found.key == KEY.public and found.first <= found.last


def test_each_changed_byte_is_found_and_its_line_named(tmp_path: Path, good: tuple[bytes, list[SignedHead]]) -> None:
    data, _ = good
    for at in range(len(data)):
        mask, bad = (0x01, 0x20, 0x80)[at % 3], bytearray(data)
        bad[at] ^= mask
        assert bad_line(tmp_path / "bad", bytes(bad)) == data[:at].count(b"\n") + 1, (at, mask)


@settings(max_examples=150)
@given(data=st.data())
def test_inserted_removed_and_replaced_bytes_are_found(
    tmp_path_factory: pytest.TempPathFactory, good: tuple[bytes, list[SignedHead]], data: st.DataObject
) -> None:
    whole, heads = good
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 700)))
    bad = whole[:start] + data.draw(st.binary(max_size=5)) + whole[end:]
    if bad != whole:
        line = bad_line(tmp_path_factory.mktemp("v") / "bad", bad, heads=heads)
        assert line in (0, *range(whole[:start].count(b"\n") + 1, 7))


def test_lines_left_out_added_doubled_or_moved_are_found(tmp_path: Path, good: tuple[bytes, list[SignedHead]]) -> None:
    lines, path = good[0].splitlines(keepends=True), tmp_path / "bad"
    for wrong, line in (
        ([lines[0], *lines[2:]], 2), ([*lines, lines[-1]], 6), ([lines[0], lines[2], lines[1], *lines[3:]], 2),
        (lines[1:], 1), ([lines[0], lines[0], *lines[1:]], 2), ([*lines, b"{}\n"], 6), ([*lines, b"\n"], 6),
    ):  # fmt: skip
        assert bad_line(path, b"".join(wrong)) == line
    assert bad_line(path, b"") == 0


def test_a_line_of_another_log_does_not_fit(tmp_path: Path, good: tuple[bytes, list[SignedHead]]) -> None:
    make(tmp_path / "other")
    lines, others = good[0].splitlines(keepends=True), (tmp_path / "other").read_bytes().splitlines(keepends=True)
    assert bad_line(tmp_path / "bad", b"".join([*lines[:2], *others[2:]])) == 3


def test_lines_cut_at_the_end_are_found_by_a_head_and_by_it_alone(
    tmp_path: Path, good: tuple[bytes, list[SignedHead]]
) -> None:
    lines, heads = good[0].splitlines(keepends=True), good[1]
    path = tmp_path / "cut"
    for count in range(1, 5):
        cut = b"".join(lines[:count])
        assert bad_line(path, cut, heads=[heads[-1]]) == count + 1
        assert verify(path).entries == count and verify(path, heads=heads[:count]).covered == count


def test_a_log_its_owner_wrote_anew_is_found_by_a_head(
    tmp_path: Path, good: tuple[bytes, list[SignedHead]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared_model.audit import log as writer

    heads, path = good[1], tmp_path / "anew"
    with monkeypatch.context() as patch:
        patch.setattr(writer.secrets, "token_hex", lambda _: heads[0].head.log)
        make(path)
    assert verify(path).entries == 5  # by itself it is without a fault
    for number in (1, 3):
        with pytest.raises(AuditError, match="rewritten") as caught:
            verify(path, heads=[heads[number]])
        assert caught.value.line == number + 1


def test_heads_of_another_log_owner_or_key_do_not_fit(tmp_path: Path, good: tuple[bytes, list[SignedHead]]) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(good[0])
    with pytest.raises(AuditError, match="another party"):
        verify(path, heads=make(tmp_path / "a", owner="south"))
    with pytest.raises(AuditError, match="another log of north"):
        verify(path, heads=make(tmp_path / "b"))
    with pytest.raises(AuditError, match="opened with another key") as caught:
        verify(path, key=SigningKey.generate().public)
    assert caught.value.line == 1
    unsigned = good[1][2].model_copy(update={"signature": "0" * 128})
    with pytest.raises(SignatureError, match="entry 3"):
        verify(path, heads=[unsigned])


def test_a_bad_witness_is_said_to_be_the_bad_one(tmp_path: Path, good: tuple[bytes, list[SignedHead]]) -> None:
    path, witness = tmp_path / "audit.jsonl", tmp_path / "witness.jsonl"
    path.write_bytes(good[0])
    make(witness, owner="coordinator")
    assert verify(path, witnesses=[witness]).heads == 0
    witness.write_bytes(witness.read_bytes().replace(b"plain", b"plane"))
    with pytest.raises(AuditError, match=r"witness.*no good itself: line 2"):
        verify(path, witnesses=[witness])


def chained(*entries: tuple[int, str, dict[str, Value]]) -> bytes:
    """Lines with good hashes, whatever they say: what somebody writes who knows the format."""
    lines, previous = [], ZERO
    for sequence, kind, fields in entries:
        entry = Entry(sequence=sequence, time="2026-01-01T00:00:00.000000Z", kind=kind, fields=fields,
                      previous=previous, salt="0" * 32)  # fmt: skip
        lines.append(entry.line())
        previous = entry.sha256
    return b"".join(lines)


def test_good_hashes_do_not_make_a_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    first: tuple[int, str, dict[str, Value]] = (1, "log_opened", {"owner": "n", "log": "0" * 32, "key": KEY.public.hex})
    path.write_bytes(chained(first, (2, "a", {})))
    assert verify(path).entries == 2
    for entries, line in (
        ([first, (3, "a", {})], 2), ([first, (1, "a", {})], 2), ([first, (2, "log_opened", first[2])], 2),
        ([(1, "a", {})], 1), ([(1, "log_opened", {"owner": "n"})], 1), ([first, (2, "A", {})], 2),
        ([first, (True, "a", {})], 2), ([first, (2, "a", {"n": 1 << 63})], 2),
    ):  # fmt: skip
        assert bad_line(path, chained(*entries)) == line


def test_reading_is_bounded(tmp_path: Path, good: tuple[bytes, list[SignedHead]]) -> None:
    path = tmp_path / "huge"
    for tail in (b"[" * 10_000 + b"\n", b"9" * 10_000 + b"\n", b"x" * (4 * MAX_LINE_BYTES) + b"\n"):
        assert bad_line(path, good[0] + tail) == 6
    with path.open("wb") as stream:
        stream.truncate(1 << 36)  # 64 GiB of nothing, without a newline
    with pytest.raises(AuditError, match="line 1: too long"):
        verify(path)
    with pytest.raises(StorageError):
        verify(tmp_path / "absent")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MAMMOFED, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def test_the_command_says_what_holds_and_what_nobody_vouches_for(tmp_path: Path) -> None:
    path, head = tmp_path / "audit.jsonl", tmp_path / "head.json"
    heads = make(path)
    done = command(path)
    assert done.returncode == 0 and "5 entries, whole and in order" in done.stdout
    assert "none was given" in done.stdout and KEY.public.fingerprint in done.stdout
    head.write_text(heads[2].to_json())
    done = command(path, "--head", head, "--key", KEY.public.hex)
    assert done.returncode == 0 and "as given" in done.stdout
    assert "nothing up to line 3 was rewritten" in done.stdout and "lines 4 to 5" in done.stdout


def test_the_command_names_the_first_bad_line_and_has_its_exit_code(tmp_path: Path) -> None:
    path, head = tmp_path / "audit.jsonl", tmp_path / "head.json"
    heads = make(path)
    head.write_text(heads[2].model_copy(update={"signature": "0" * 128}).to_json())
    done = command(path, "--head", head)
    assert done.returncode == 33 and "kept head" in done.stderr
    path.write_bytes(path.read_bytes().replace(b"plain", b"plane"))
    done = command(path)
    assert done.returncode == 71 and "line 2: changed after it was written" in done.stderr
    assert "plane" not in done.stderr and "Traceback" not in done.stderr
    assert command(path, "--key", "x").returncode == 33
