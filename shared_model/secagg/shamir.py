"""Shamir's t-of-n sharing of a 32-byte secret over a prime field; used by both ends of the secure sum.

Shamir, "How to share a secret", CACM 22 (1979). Fewer than t shares are consistent with every secret; that holds for
whatever computing power. The arithmetic takes a time that depends on the numbers: it runs on the site's own machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

from shared_model.errors import MessageError

SECRET_BYTES: Final = 32
PRIME: Final = 2**256 + 297  # the smallest prime above every 32-byte number (a test says that it is prime)
SHARE_DIGITS: Final = 66  # hexadecimal digits of a number below PRIME, in whole bytes


def split(secret: bytes, *, shares: int, threshold: int) -> tuple[int, ...]:
    """Cut a secret into numbers in [0, PRIME); number i (from 0) is the polynomial at i + 1.

    Args:
        secret: 32 bytes.
        shares: how many, at least `threshold`.
        threshold: how many of them give it back, at least 1.
    """
    assert len(secret) == SECRET_BYTES and 1 <= threshold <= shares < PRIME
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return tuple(_at(polynomial, point) for point in range(1, shares + 1))


def join(shares: Mapping[int, int], *, threshold: int) -> bytes:
    """The secret from at least `threshold` shares, by place of the share from 0; what is above is not looked at.

    Raises:
        MessageError: too few, or what comes out is no 32-byte number: some share is false.
    """
    if len(shares) < threshold:
        raise MessageError("too few shares of a secret", found=len(shares), expected=f"at least {threshold}")
    points = {place + 1: value for place, value in sorted(shares.items())[:threshold]}
    total = 0
    for x, y in points.items():
        above, below = 1, 1
        for other in points:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        total += y * above * pow(below, -1, PRIME)
    secret = total % PRIME
    if secret >= 1 << 8 * SECRET_BYTES:
        raise MessageError("the shares of a secret do not fit together")
    return secret.to_bytes(SECRET_BYTES, "big")


def to_hex(share: int) -> str:
    """A share as `SHARE_DIGITS` hexadecimal digits."""
    return f"{share:0{SHARE_DIGITS}x}"


def _at(polynomial: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value
