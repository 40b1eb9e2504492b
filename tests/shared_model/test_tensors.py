"""Packed tensors come back to the bit, and a block that lies is refused before anything is allocated for it."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save

from shared_model.errors import MessageError
from shared_model.tensors import (
    CORRECTION,
    MASKED,
    MAX_NAMES_BYTES,
    MAX_TENSOR_BYTES,
    pack,
    pack_parts,
    unpack,
    unpack_parts,
)

NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name not in {"__metadata__", MASKED})
TENSORS = st.dictionaries(NAMES, arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, min_side=0)), max_size=5)


def same(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(
        one[n].shape == other[n].shape and one[n].tobytes() == np.ascontiguousarray(other[n]).tobytes() for n in one
    )


@given(TENSORS, TENSORS)
def test_tensors_come_back_to_the_bit_from_their_blocks(weights: Any, beside: Any) -> None:
    both = weights | {f"{CORRECTION}{name}": array for name, array in beside.items()}
    assert same(unpack(pack(both)), both)
    assert same(unpack_parts(pack_parts(both)), both)


def test_a_tensor_with_the_name_of_a_secure_sum_s_words_is_not_rounded_to_words() -> None:
    words = {MASKED: np.arange(3, dtype=np.uint32)}
    assert same(unpack(pack(words)), words)
    with pytest.raises(TypeError, match="float32"):
        pack({MASKED: np.array([1.5], np.float32)})


def test_the_bytes_depend_on_the_content_alone() -> None:
    """Flower stores what all sites share once, by its hash."""
    one = {"b": np.ones(2, np.float32), "a": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}
    other = {name: np.ascontiguousarray(one[name]) for name in sorted(one)}
    assert pack(one) == pack(other)


def test_what_is_the_same_for_all_sites_has_a_block_of_its_own() -> None:
    weights = {"w": np.ones(2, np.float32)}
    first = pack_parts({**weights, f"{CORRECTION}w": np.zeros(2, np.float32)})
    second = pack_parts({**weights, f"{CORRECTION}w": np.ones(2, np.float32)})
    assert first["weights"] == second["weights"] and first["correction"] != second["correction"]
    assert list(pack_parts(weights)) == ["weights"] and pack_parts({}) == {}


def block(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize("data", [
    b"", b"\x00" * 7, b"\xff" * 8, block([]), block({"w": 1}), block({"w": ONE}), block({"w": ONE}, b"12345"),
    block({"w": {**ONE, "shape": [2]}}, b"1234"), block({"w": {**ONE, "dtype": "F8_E4M3"}}, b"1234"),
    block({"w": {**ONE, "data_offsets": [0, 8]}}, b"1234"), block({"w": ONE, "v": ONE}, b"1234"),
    block({"w": {**ONE, "shape": [-1]}}, b"1234"), b"\x04\x00\x00\x00\x00\x00\x00\x00null",
    block({"w": ONE}, b"1234").replace(b"w", b"\xff"),
])  # fmt: skip
def test_damage_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(MessageError, match=r"tensors are (damaged|too many)"):
        unpack(data)


def test_a_claim_of_terabytes_allocates_nothing() -> None:
    claim = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    tracemalloc.start()
    with pytest.raises(MessageError, match="damaged"):
        unpack(block({"w": claim}, b"1234"))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8, np.bool_])
def test_another_type_than_float32_is_refused(dtype: Any) -> None:
    with pytest.raises(MessageError, match="of a wrong type"):
        unpack(save({"w": np.ones(2, dtype)}))


def test_a_block_above_the_limit_is_refused_and_so_are_two_together() -> None:
    with pytest.raises(MessageError, match="too large"):
        unpack(bytes(MAX_TENSOR_BYTES + 1))
    half = pack({"w": np.zeros(MAX_TENSOR_BYTES // 8, np.float32)})
    with pytest.raises(MessageError, match="too large"):
        unpack_parts({"weights": half, "correction": half})


def test_more_names_than_any_model_has_are_refused() -> None:
    many = {f"{number:0100d}": np.zeros(0, np.float32) for number in range(MAX_NAMES_BYTES // 100)}
    with pytest.raises(MessageError, match="too many"):
        unpack(pack(many))


def test_a_tensor_in_anothers_block_and_an_unknown_block_are_refused() -> None:
    weights, beside = pack({"w": np.zeros(1, np.float32)}), pack({f"{CORRECTION}w": np.zeros(1, np.float32)})
    for parts in ({"weights": beside}, {"correction": weights}, {"weights": weights, "correction": weights}):
        with pytest.raises(MessageError, match="another block"):
            unpack_parts(parts)
    with pytest.raises(MessageError, match="unknown block"):
        unpack_parts({"weights": weights, "extra": weights})
