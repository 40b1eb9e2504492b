"""Fixed point, Shamir's shares and masks, each alone."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.errors import ConfigError, MessageError
from shared_model.secagg import masks, shamir
from shared_model.secagg.fixed_point import FixedPoint

COEFFICIENTS = st.lists(st.floats(1e-9, 1.0), min_size=3, max_size=40)


@settings(max_examples=150)
@given(st.data(), COEFFICIENTS, st.floats(1e-12, 1e12), st.sampled_from([32, 64]))
def test_the_sum_is_within_the_stated_error_and_never_wraps(
    data: st.DataObject, weights: list[float], bound: float, bits: int
) -> None:
    code = FixedPoint.fitting(bits=bits, bound=bound, coefficients=weights)
    shape = st.lists(st.floats(-bound, bound) | st.sampled_from([-bound, bound]), min_size=4, max_size=4)
    values = [np.array(data.draw(shape)) for _ in weights]
    total = np.zeros(4, dtype=code.dtype)
    for each, weight in zip(values, weights, strict=True):
        total += code.encode(each, coefficient=weight)
    found = code.decode(total)
    for place in range(4):
        products = [Fraction(float(v[place])) * Fraction(w) for v, w in zip(values, weights, strict=True)]
        exact = sum(products, Fraction(0))
        assert abs(Fraction(float(found[place])) - exact) <= Fraction(code.error(weights)) * (1 + Fraction(1, 2**40))


@settings(max_examples=100)
@given(COEFFICIENTS, st.floats(1e-12, 1e12), st.sampled_from([32, 64]))
def test_the_step_is_the_finest_that_does_not_wrap(weights: list[float], bound: float, bits: int) -> None:
    code = FixedPoint.fitting(bits=bits, bound=bound, coefficients=weights)
    room = min(2 ** (bits - 1) - 1, 2**53) - len(weights)
    reach = Fraction(bound) * sum(map(Fraction, weights)) / Fraction(code.step)
    assert reach <= room < 2 * reach


@pytest.mark.parametrize("bits", [32, 64])
def test_all_at_the_bound_do_not_wrap(bits: int) -> None:
    for count in (3, 10, 256):
        code = FixedPoint.fitting(bits=bits, bound=8.0, coefficients=[1.0] * count)
        for sign in (-1.0, 1.0):
            words = sum(code.encode(np.array([8.0 * sign]), coefficient=1.0) for _ in range(count))
            assert code.decode(np.asarray(words))[0] == 8.0 * sign * count


def test_counts_are_exact() -> None:
    code = FixedPoint.fitting(bits=32, bound=100_000, coefficients=[1.0] * 50)
    counts = np.arange(100_001)
    assert code.step <= 1
    assert (code.decode(code.encode(counts, coefficient=1.0)) == counts).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1.0000001, -2.0, 1e300])
def test_beyond_the_bound_is_refused_and_never_clipped(bad: float) -> None:
    code = FixedPoint.fitting(bits=32, bound=1.0, coefficients=[1.0] * 3)
    with pytest.raises(MessageError, match="beyond its bound"):
        code.encode(np.array([0.0, bad]), coefficient=0.5)


def test_no_step_without_sites_or_bound() -> None:
    for bound, weights in ((0.0, [1.0]), (1.0, [])):
        with pytest.raises(ConfigError):
            FixedPoint.fitting(bits=32, bound=bound, coefficients=weights)


def test_the_field_is_the_smallest_prime_above_every_secret() -> None:
    from sympy import isprime, nextprime  # comes with torch

    assert isprime(shamir.PRIME) and nextprime(2**256) == shamir.PRIME


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(range(32))])
def test_any_threshold_of_the_shares_gives_the_secret_back(secret: bytes) -> None:
    shares = dict(enumerate(shamir.split(secret, shares=6, threshold=4)))
    for places in combinations(range(6), 4):
        assert shamir.join({place: shares[place] for place in places}, threshold=4) == secret
    with pytest.raises(MessageError, match="too few"):
        shamir.join({place: shares[place] for place in range(3)}, threshold=4)


@settings(max_examples=40)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_fewer_shares_fit_every_secret(secret: bytes, other: bytes) -> None:
    """For any other secret there is one last share with which the same two shares give that one."""
    first, second, _ = shamir.split(secret, shares=3, threshold=3)
    x = {1: first, 2: second}
    # value at 3 of the parabola through (0, other), (1, first), (2, second)
    third = (int.from_bytes(other, "big") - 3 * x[1] + 3 * x[2]) % shamir.PRIME
    assert shamir.join({0: first, 1: second, 2: third}, threshold=3) == other


def test_masks_of_two_sites_cancel_and_depend_on_every_label() -> None:
    one, two = bytes(range(32)), bytes(range(1, 33))
    key = masks.agree(one, masks.public_hex(two), "mask", "a", "b")
    assert key == masks.agree(two, masks.public_hex(one), "mask", "a", "b")
    others = [("mask", "a", "c"), ("self", "a", "b"), ("mask", "ab"), ("mask", "a,b"), ("mask", 'a","b')]
    assert len({key, *(masks.agree(one, masks.public_hex(two), *label) for label in others)}) == 6


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
def test_a_mask_comes_off_and_does_not_depend_on_cutting(dtype: str) -> None:
    words = np.arange(200_001, dtype=dtype)
    masks.apply(words, b"k" * 32)
    short = np.arange(1_000, dtype=dtype)
    masks.apply(short, b"k" * 32)
    assert (words[:1_000] == short).all() and len(np.unique(words)) > 199_000
    masks.apply(words, b"k" * 32, subtract=True)
    assert (words == np.arange(200_001, dtype=dtype)).all()


def test_seeds_that_fold_to_the_same_32_bits_give_other_masks() -> None:
    """Flower's generator folds its seed with XOR to 32 bits: these two are one seed to it, and two to us."""
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    one = bytes(range(32))
    two = one[4:] + one[:4]
    theirs = [pseudo_rand_gen(seed, 1 << 30, [(8,)])[0] for seed in (one, two)]
    assert (theirs[0] == theirs[1]).all()
    words = [np.zeros(8, dtype="<u4") for _ in range(2)]
    for word, seed in zip(words, (one, two), strict=True):
        masks.apply(word, masks.derive(seed, "self", "sum", "site"))
    assert (words[0] != words[1]).all()
    raw = [np.zeros(8, dtype="<u4") for _ in range(2)]
    for word, key in zip(raw, (one, two), strict=True):
        masks.apply(word, key)
    assert (raw[0] != raw[1]).all()


def test_every_bit_of_a_key_counts() -> None:
    seen = set()
    for bit in range(256):
        words = np.zeros(4, dtype="<u8")
        masks.apply(words, (1 << bit).to_bytes(32, "little"))
        seen.add(words.tobytes())
    assert len(seen) == 256
