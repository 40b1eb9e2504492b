"""Reads the header of a NumPy array that came over the network, before anything is allocated; used by both ends.

Not `numpy.load`: it allocates what a header claims before it looks at the data (numpy/lib/format.py). The tensors of a
model have the same headers in every message, and reading one takes longer than copying a small tensor: a round of a
hundred sites would parse ten thousand.
"""

from __future__ import annotations

import functools
import io
import math
import tokenize
from typing import NamedTuple

import numpy as np

MAX_HEADER = 1024  # bytes; NumPy writes 128 for any shape of a model's tensor


class Header(NamedTuple):
    """Form of an array in C (`fortran` false) or Fortran order, and where its data begins in the file."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[np.generic]
    offset: int

    @property
    def size(self) -> int:
        """Numbers that the header claims."""
        return math.prod(self.shape)


def read_header(data: bytes) -> Header:
    """Header of a version 1.0 file.

    Raises:
        ValueError: no such file, another version, or a header longer than any that NumPy writes for a tensor.
    """
    if data[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("no NumPy file of version 1.0")
    end = 10 + int.from_bytes(data[8:10], "little")
    if not 10 < end <= min(MAX_HEADER, len(data)):
        raise ValueError("a header of an impossible length")
    return _parsed(bytes(data[:end]))


@functools.lru_cache(maxsize=4096)
def _parsed(header: bytes) -> Header:
    stream = io.BytesIO(header)
    np.lib.format.read_magic(stream)
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    # NumPy puts what it cannot read through a tokeniser that raises errors of its own.
    except (EOFError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(f"a damaged header: {type(error).__name__}") from None
    if any(length < 0 for length in shape):
        raise ValueError("a negative length")
    return Header(tuple(shape), bool(fortran), dtype, len(header))
