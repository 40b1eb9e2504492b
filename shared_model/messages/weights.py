"""The named tensors of a message: their identity, their shapes, a correction that comes beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import MessageError
from shared_model.tensors import CORRECTION, Arrays


def weights_sha256(arrays: Arrays) -> str:
    """Hex SHA-256 over names, shapes and float32 bytes in name order; the identity of a set of weights."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], dtype="<f4", order="C")
        digest.update(f"{name}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def split_correction(arrays: Arrays) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Tensors of a training request -> weights, and the correction beside them under the weights' own names."""
    weights = {name: array for name, array in arrays.items() if not name.startswith(CORRECTION)}
    beside = {name.removeprefix(CORRECTION): arrays[name] for name in arrays if name.startswith(CORRECTION)}
    return weights, beside


def check_shapes(arrays: Arrays, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are not exactly those expected (no broadcasting, none missing, none more).

    Raises:
        MessageError: naming the first difference.
    """
    if set(arrays) != set(expected):
        missing, extra = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
        raise MessageError("tensors are not those of the model", found=f"missing {missing[:3]}, unknown {extra[:3]}")
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise MessageError(f"tensor {name} has a wrong shape", found=arrays[name].shape, expected=shape)
