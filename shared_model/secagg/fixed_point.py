"""Numbers as whole multiples of a power of two, so that their sum modulo 2**bits is exact; used by both ends.

The step is as fine as the words allow: bound times the sum of all sites' coefficients fits, whoever drops out, so that
no sum wraps around. A value beyond the bound is refused, never clipped in silence. With a step of a power of two, whole
numbers up to the bound (counts, histograms) are summed without any error wherever the step is at most one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import ConfigError, MessageError
from shared_model.secagg.masks import Words

Bits = Literal[32, 64]
_DOUBLE: Final = 53  # bits of a float64's significand: sums up to 2**53 come back exactly


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How values become words. Made by :meth:`fitting`.

    bits: width of a word. exponent: the step is 2**-exponent. bound: greatest absolute value before the coefficient.

    >>> code = FixedPoint.fitting(bits=32, bound=1.0, coefficients=[1.0, 0.5, 0.5])
    >>> words = code.encode(np.array([0.25, -1.0]), coefficient=0.5)
    >>> words += code.encode(np.array([0.5, 0.0]), coefficient=1.0)
    >>> code.decode(words).tolist()
    [0.625, -0.5]
    """

    bits: Bits
    exponent: int
    bound: float

    @classmethod
    def fitting(cls, *, bits: Bits, bound: float, coefficients: Iterable[float]) -> FixedPoint:
        """The finest step with which no sum over any of the sites wraps around.

        Args:
            coefficients: public, positive; what each site multiplies its values by.

        Raises:
            ConfigError: no step fits.
        """
        weights = list(coefficients)
        reach = Fraction(bound) * sum(map(Fraction, weights))
        room = min((1 << (bits - 1)) - 1, 1 << _DOUBLE) - len(weights)  # each site may round up by less than one step
        if reach <= 0 or room <= 0:
            raise ConfigError("no fixed-point step fits", found=f"bound {bound}, {len(weights)} sites",
                              expected="a positive bound and positive coefficients")  # fmt: skip
        exponent = (room // reach).bit_length() - 1 if room >= reach else -_above(reach / room)
        return cls(bits=bits, exponent=exponent, bound=bound)

    @property
    def step(self) -> float:
        """Distance of two neighbouring values."""
        return float(Fraction(2) ** -self.exponent)

    @property
    def dtype(self) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
        """Type of a word: unsigned, little-endian."""
        return np.dtype("<u4") if self.bits == 32 else np.dtype("<u8")

    def encode(self, values: NDArray[np.generic], *, coefficient: float) -> Words:
        """Values times `coefficient`, rounded to the next step: words modulo 2**bits of the same shape.

        Raises:
            MessageError: a value is not finite or beyond the bound.
        """
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.size and not float(np.abs(numbers).max()) <= self.bound:  # NaN compares false
            raise MessageError("a value for the secure sum is not finite or beyond its bound",
                               expected=f"at most {self.bound}", remedy="clip it before the sum")  # fmt: skip
        steps = np.rint(np.ldexp(numbers * coefficient, self.exponent)).astype(np.int64)
        return steps.astype(np.uint32) if self.bits == 32 else steps.astype(np.uint64)

    def decode(self, words: Words) -> NDArray[np.float64]:
        """The sum that the words stand for; exact."""
        signed = words.astype(self.dtype).view("<i4" if self.bits == 32 else "<i8")
        return np.ldexp(signed.astype(np.float64), -self.exponent)

    def error(self, coefficients: Iterable[float]) -> float:
        """Greatest distance of a decoded sum over these sites from the sum of their real products.

        Half a step a site, and the rounding of the product in float64.
        """
        weights = list(coefficients)
        return len(weights) * self.step / 2 + sum(weights) * self.bound * 2.0**-_DOUBLE


def _above(ratio: Fraction) -> int:
    """The smallest power of two's exponent that is at least `ratio` >= 1."""
    return (-(-ratio.numerator // ratio.denominator) - 1).bit_length()
