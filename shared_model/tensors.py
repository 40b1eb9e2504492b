"""Named float32 tensors as one block of bytes (safetensors), and back; used at both ends of every wire. The words of a
secure sum are the one exception to float32.

Flower takes each array of a record for two objects of its own, each of which is stored in SuperLink's database and
costs a request at every hop: one message of a model with 57 tensors was 117 requests. Packed, they travel as one array,
or as two where a strategy sends each site something of its own beside the weights, which all sites share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from shared_model.errors import MessageError

MAX_TENSOR_BYTES: Final = 128 << 20  # Flower with SQLite fails somewhere between 200 and 400 MB (research/flower.md)
MAX_NAMES_BYTES: Final = 1 << 20  # names, shapes and places of some ten thousand tensors
MASKED: Final = "masked_words"  # the one tensor that is not float32: words of a secure sum, as unsigned 32 bits
CORRECTION: Final = "correction."  # prefix of the tensors beside the weights that SCAFFOLD sends
WEIGHTS, BESIDE = "weights", "correction"
PARTS: Final = (WEIGHTS, BESIDE)
"""Names of the blocks that one message may have."""

Arrays = Mapping[str, NDArray[np.float32]]
T = TypeVar("T")


def pack(arrays: Arrays) -> bytes:
    """Tensors -> bytes; the order of the names does not matter."""
    return bytes(save_safetensors({name: typed(name, arrays[name]) for name in sorted(arrays)}))


def unpack(data: bytes) -> dict[str, NDArray[np.float32]]:
    """Bytes that are not trusted -> tensors; nothing is allocated beyond the bytes that are there.

    Raises:
        MessageError: too large, too many, damaged, a header that lies, or another type than float32.
    """
    if len(data) > MAX_TENSOR_BYTES:
        raise MessageError("tensors are too large", found=f"{len(data)} bytes", expected=f"at most {MAX_TENSOR_BYTES}")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_NAMES_BYTES:
        raise MessageError("tensors are too many", found=f"a header of {length} bytes",
                           expected=f"at most {MAX_NAMES_BYTES}")  # fmt: skip
    return load(data)


def load(data: bytes) -> dict[str, NDArray[np.float32]]:
    """As :func:`unpack`, for bytes whose length and header's length somebody has checked already."""
    try:
        arrays = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise MessageError(f"tensors are damaged: {type(error).__name__}") from None
    for name, array in arrays.items():
        wanted = dtype_of(name)
        if array.dtype != wanted:
            raise MessageError("tensor of a wrong type", found=f"{name[:80]}: {array.dtype}", expected=wanted.name)
    return arrays


def pack_parts(arrays: Arrays) -> dict[str, bytes]:
    """The blocks of a message by name; none without tensors."""
    return {part: pack(tensors) for part, tensors in split_parts(arrays).items()}


def split_parts(arrays: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """What belongs into which block; a block without tensors is left out."""
    beside = {name: array for name, array in arrays.items() if name.startswith(CORRECTION)}
    weights = {name: array for name, array in arrays.items() if name not in beside}
    return {part: tensors for part, tensors in ((WEIGHTS, weights), (BESIDE, beside)) if tensors}


def unpack_parts(parts: Mapping[str, bytes]) -> dict[str, NDArray[np.float32]]:
    """The tensors of a message's blocks.

    Raises:
        MessageError: as :func:`unpack`, too large together, an unknown block, or a tensor in a block of others.
    """
    if set(parts) - set(PARTS):
        raise MessageError("tensors in an unknown block", found=sorted(set(parts) - set(PARTS))[0][:80], expected=PARTS)
    if sum(map(len, parts.values())) > MAX_TENSOR_BYTES:
        raise MessageError("tensors are too large", expected=f"at most {MAX_TENSOR_BYTES} bytes")
    found: dict[str, NDArray[np.float32]] = {}
    for part, data in parts.items():
        tensors = unpack(data)
        if set(split_parts(tensors)) - {part}:
            raise MessageError("tensors in another block than theirs", found=part)
        found |= tensors
    return found


def dtype_of(name: str) -> np.dtype[Any]:
    """The only type that a tensor of this name may have, little-endian."""
    return np.dtype("<u4" if name == MASKED else "<f4")


def typed(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array in the type that its name has, contiguous.

    Raises:
        TypeError: real numbers under the name of a secure sum's words, which would be rounded.
    """
    return np.asarray(array).astype(dtype_of(name), order="C", casting="same_kind", copy=False)
