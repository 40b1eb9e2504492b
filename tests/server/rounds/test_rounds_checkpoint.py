"""Checkpoints: the same bytes for the same round, whole or not there, and nothing foreign is read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from server.rounds.checkpoint import (
    Checkpoint,
    checkpoint_path,
    read_checkpoint,
    read_safetensors,
    write_bytes,
    write_checkpoint,
    write_safetensors,
)
from shared_model.errors import StorageError

SHA = "ab" * 32


def example(number: int = 3) -> Checkpoint:
    random = np.random.default_rng(number)
    weights = {"a.weight": random.normal(size=(4, 3)).astype(np.float32), "a.bias": np.float32(2.5).reshape(())}
    strategy = {f"m_t.{name}": array * 2 for name, array in weights.items()}
    return Checkpoint(round=number, protocol_sha256=SHA, weights=weights, strategy=strategy)


def test_round_trip_to_the_bit_scalars_included(tmp_path: Path) -> None:
    written = example()
    assert write_checkpoint(tmp_path, written) == tmp_path / "checkpoints" / "round-0003.safetensors"
    found = read_checkpoint(tmp_path, 3, protocol_sha256=SHA)
    for part, arrays in (("weights", written.weights), ("strategy", written.strategy)):
        assert set(getattr(found, part)) == set(arrays)
        for name, array in arrays.items():
            assert getattr(found, part)[name].shape == array.shape
            assert getattr(found, part)[name].tobytes() == array.tobytes()


def test_same_content_gives_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    one = example()
    other = Checkpoint(
        round=3, protocol_sha256=SHA, weights=dict(reversed(one.weights.items())),
        strategy=dict(reversed(one.strategy.items())),
    )  # fmt: skip
    first = write_checkpoint(tmp_path / "one", one).read_bytes()
    assert all(write_checkpoint(tmp_path / str(i), other).read_bytes() == first for i in range(5))


def test_another_round_protocol_or_file_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, example())
    with pytest.raises(StorageError, match="protocol_sha256 differs"):
        read_checkpoint(tmp_path, 3, protocol_sha256="cd" * 32)
    path.rename(checkpoint_path(tmp_path, 4))
    with pytest.raises(StorageError, match="round differs"):
        read_checkpoint(tmp_path, 4, protocol_sha256=SHA)
    with pytest.raises(StorageError, match=r"cannot read .*No such file"):
        read_checkpoint(tmp_path, 3, protocol_sha256=SHA)


def test_any_flipped_or_missing_byte_is_noticed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, example())
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        broken = bytearray(data)
        broken[position] ^= 0x11
        path.write_bytes(bytes(broken))
        with pytest.raises(StorageError):
            read_checkpoint(tmp_path, 3, protocol_sha256=SHA)
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        with pytest.raises(StorageError):
            read_checkpoint(tmp_path, 3, protocol_sha256=SHA)


def test_foreign_tensors_and_types_are_refused(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 3)
    write_safetensors(path, {"code": np.zeros(1, dtype=np.float32)}, "checkpoint", {"round": 3})
    with pytest.raises(StorageError, match="foreign tensor"):
        read_checkpoint(tmp_path, 3, protocol_sha256=SHA)
    path.write_bytes(save({"weights.a": np.zeros(1)}, metadata={"checkpoint": json.dumps({"round": 3})}))
    with pytest.raises(StorageError, match="wrong type"):
        read_checkpoint(tmp_path, 3, protocol_sha256=SHA)
    path.write_bytes(save({"weights.a": np.zeros(1, dtype=np.float32)}, metadata={"other": "{}"}))
    with pytest.raises(StorageError, match="metadata entry 'checkpoint'"):
        read_safetensors(path, "checkpoint")


def test_a_failing_write_leaves_what_was_there_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*make room on the disk"):
        write_bytes(path, b"after")
    monkeypatch.undo()
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_folder_is_flushed_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def watch(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        flushed.append(f"{name} {sorted(p.name for p in tmp_path.iterdir())}")
        real(handle)

    monkeypatch.setattr(os, "fsync", watch)
    write_bytes(tmp_path / "file", b"x")
    assert flushed == ["file.tmp ['file.tmp']", f"{tmp_path.name} ['file']"]
