"""Seconds of a round at one site by phase, and how finely they are told; used by the trainer, its gate and the server.

Durations only, each by one clock: the clocks of two machines are never subtracted from each other.

What a time tells. Training takes longer with every woman who is drawn, so that seconds tell about how many a site has:
with n of them one woman is about 1/n of the time. Where the protocol protects single women or hides single sites
(differential privacy, a secure sum), seconds are told in `STEPS` to a decade, about 12 % from one to the next: a
reading tells the number no better than to 6 %, and is the same with one woman more, unless it lies at the edge of a
step. That is a bound of one reading and no differential privacy: the mean over many rounds is finer, and whoever sees
the reply arrive has a clock of their own (client/EGRESS.md).
"""

from __future__ import annotations

import bisect
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

PHASES: Final = ("wait", "load", "train", "mask", "send")
"""In the order in which they are shown. `send` no site can measure: it is what is left of the round trip."""
STEPS: Final = 20
MOST_S: Final = 1e7  # 115 days; more than any deadline
_DECADE: Final[list[int]] = [round(10 ** (1 + i / STEPS)) for i in range(STEPS)]  # 10, 11, 13, ... 89: two digits
_LADDER: Final[list[int]] = [0, *range(1, 10), *(digits * 10**k for k in range(10) for digits in _DECADE)]  # in ms


class PhaseSeconds(BaseModel):
    """What a trainer measured of one request, in seconds >= 0, as :func:`told` tells them.

    wait: from the request's arrival to its turn: the trainer was busy with another one.
    load: the request's weights, the model, and reading or encoding films and rows.
    train: the training itself, with its noise and its accounting.
    mask: in a study with a secure sum, making the update ready to be masked; the sum's own steps are told by each step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    wait: float = Field(default=0.0, ge=0, le=MOST_S)
    load: float = Field(default=0.0, ge=0, le=MOST_S)
    train: float = Field(default=0.0, ge=0, le=MOST_S)
    mask: float = Field(default=0.0, ge=0, le=MOST_S)

    @property
    def total(self) -> float:
        """All of them together."""
        return self.wait + self.load + self.train + self.mask


def told(seconds: float, *, coarse: bool) -> float:
    """Seconds as they are told: to the millisecond, or to the nearest step of the ladder.

    Args:
        coarse: of a site whose protocol protects single women or hides single sites.

    >>> told(61.2345, coarse=False), told(61.2345, coarse=True), told(0.0004, coarse=True)
    (61.234, 63.0, 0.0)
    """
    milliseconds = min(max(0.0, seconds), MOST_S) * 1000
    if not coarse:
        return round(milliseconds) / 1000
    above = bisect.bisect_left(_LADDER, round(milliseconds, 3))
    low, high = _LADDER[max(0, above - 1)], _LADDER[min(above, len(_LADDER) - 1)]
    return (low if milliseconds - low <= high - milliseconds else high) / 1000
