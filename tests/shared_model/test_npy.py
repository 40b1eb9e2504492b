"""The header of an array from the network is read as NumPy reads it, or refused; nothing is allocated for its claim."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared_model.npy import MAX_HEADER, read_header


def saved(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


@given(array=arrays.arrays(np.dtype("<f4"), arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)))
@settings(deadline=None, max_examples=60)
def test_headers_are_read_as_numpy_reads_them(array: np.ndarray) -> None:  # type: ignore[type-arg]
    data = saved(array)
    header = read_header(data)
    assert (header.shape, header.dtype, header.size) == (array.shape, array.dtype, array.size)
    values = np.frombuffer(data[header.offset :], "<f4").reshape(header.shape, order="F" if header.fortran else "C")
    np.testing.assert_array_equal(values, array)


@given(data=st.binary(max_size=300) | st.binary(max_size=200).map(lambda b: b"\x93NUMPY\x01\x00\x76\x00" + b))
@settings(deadline=None, max_examples=200)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_header(data)


@pytest.mark.parametrize("shape", ["(-1, -4)", "(2, 2", "[2]", "2", "(2.0,)"])
def test_impossible_shapes_are_refused(shape: str) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with pytest.raises(ValueError):
        read_header(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())


def test_a_long_header_and_a_huge_claim_cost_nothing() -> None:
    with pytest.raises(ValueError, match="length"):
        read_header(b"\x93NUMPY\x01\x00" + (MAX_HEADER + 1).to_bytes(2, "little") + b" " * 2 * MAX_HEADER)
    claim = saved(np.zeros(1, "<f4")).replace(b"(1,), }           ", b"(10000000000,), } ")
    assert read_header(claim).size == 10_000_000_000
