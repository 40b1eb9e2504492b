"""Durable weights of a study: one safetensors file a closed round, written atomically; used by the round loop.

`round-NNNN.safetensors` holds `weights.<tensor>` and `strategy.<attribute>.<tensor>`, float32, and one metadata entry
`checkpoint`, a JSON object (one entry only: with several, safetensors writes them in random order, and the same round
would not give the same bytes). Reading verifies the protocol's hash, the round and the hashes of both parts.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from shared_model.bounded import read_at_most
from shared_model.errors import StorageError
from shared_model.messages import MAX_FRAME_BYTES, Arrays, weights_sha256
from shared_model.private_files import sync_folder

MAX_CHECKPOINT_BYTES = 4 * MAX_FRAME_BYTES  # weights and two moments of FedAdam, and room


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the next round starts from. round: 0 for the initial weights. strategy: see `Aggregator.state`."""

    round: int
    protocol_sha256: str
    weights: Mapping[str, NDArray[np.float32]]
    strategy: Mapping[str, NDArray[np.float32]]


def checkpoint_path(run_dir: Path, round_number: int) -> Path:
    """Where the checkpoint of a round lies."""
    return run_dir / "checkpoints" / f"round-{round_number:04d}.safetensors"


def write_checkpoint(run_dir: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; when this returns, it survives a power cut.

    Raises:
        StorageError: disk full or not writable; what was there before is untouched.
    """
    tensors = {f"weights.{name}": array for name, array in checkpoint.weights.items()}
    tensors |= {f"strategy.{name}": array for name, array in checkpoint.strategy.items()}
    document = {
        "round": checkpoint.round, "protocol_sha256": checkpoint.protocol_sha256,
        "weights_sha256": weights_sha256(checkpoint.weights), "strategy_sha256": weights_sha256(checkpoint.strategy),
    }  # fmt: skip
    path = checkpoint_path(run_dir, checkpoint.round)
    write_safetensors(path, tensors, "checkpoint", document)
    return path


def read_checkpoint(run_dir: Path, round_number: int, *, protocol_sha256: str) -> Checkpoint:
    """Read a checkpoint and verify it.

    Raises:
        StorageError: absent, damaged, or of another round or protocol.
    """
    path = checkpoint_path(run_dir, round_number)
    tensors, document = read_safetensors(path, "checkpoint")
    parts: dict[str, dict[str, NDArray[np.float32]]] = {"weights": {}, "strategy": {}}
    for key, array in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise StorageError(f"{path} holds a foreign tensor", found=key[:80], expected="weights.*, strategy.*")
        parts[part][name] = array
    found = {
        "round": round_number, "protocol_sha256": protocol_sha256,
        "weights_sha256": weights_sha256(parts["weights"]), "strategy_sha256": weights_sha256(parts["strategy"]),
    }  # fmt: skip
    for key, value in found.items():
        if document.get(key) != value:
            raise StorageError(f"{path} is damaged or belongs elsewhere: {key} differs", found=document.get(key),
                               expected=value, remedy="restore the run directory from its backup")  # fmt: skip
    return Checkpoint(round=round_number, protocol_sha256=protocol_sha256, **parts)


def write_safetensors(path: Path, arrays: Arrays, key: str, document: Mapping[str, object]) -> None:
    """Write arrays with one JSON metadata entry: temporary file, fsync, rename, fsync of the folder.

    Raises:
        StorageError: disk full or not writable.
    """
    tensors = {name: np.asarray(array, dtype=np.float32, order="C") for name, array in arrays.items()}
    write_bytes(path, save_safetensors(tensors, metadata={key: json.dumps(document, sort_keys=True)}))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file by `data`, all or nothing, durably.

    Raises:
        StorageError: disk full or not writable.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror}", found=f"{len(data)} bytes to write",
            remedy="make room on the disk, then resume the study; closed rounds are safe",
        ) from None  # fmt: skip


def read_safetensors(path: Path, key: str) -> tuple[dict[str, NDArray[np.float32]], dict[str, object]]:
    """Arrays and the metadata entry `key`, a JSON object, of a file of bounded size.

    Raises:
        StorageError: absent, too large, damaged or without that entry.
    """
    data = _read(path)
    arrays = _parse(path, data)
    try:
        document = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][key])
    except (ValueError, KeyError, TypeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise StorageError(f"{path} is not what it should be", expected=f"a metadata entry {key!r}, a JSON object")
    return arrays, document


def read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """Arrays of a file of bounded size, without its metadata.

    Raises:
        StorageError: absent, too large or damaged.
    """
    return _parse(path, _read(path))


def _read(path: Path) -> bytes:
    return read_at_most(path, MAX_CHECKPOINT_BYTES, error=StorageError, remedy="restore it from the run's backup")


def _parse(path: Path, data: bytes) -> dict[str, NDArray[np.float32]]:
    try:
        arrays = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        words = f"{path} is damaged: {type(error).__name__}"
        raise StorageError(words, remedy="restore it from the run's backup") from None
    if any(array.dtype != np.float32 for array in arrays.values()):
        raise StorageError(f"{path} holds tensors of a wrong type", expected="float32")
    return arrays
