"""How far a site's own policy may raise a protocol's noise, so that trainer and coordinator count on the same.

A site that trains with more noise than the protocol says takes longer steps than the coordinator expects of it. It says
so (`PrivacySpent.noise_multiplier`), and the sanity gate allows for it up to `MOST_RAISE`: a site can therefore not buy
itself an unlimited bound by a figure that nobody can check, and a trainer refuses a study that would need more.
"""

from __future__ import annotations

import math
from typing import Final

from shared_model.protocol import Protocol

MOST_RAISE: Final = 4.0


def accepted_noise(promised: float, told: float | None) -> float:
    """The noise multiplier that the coordinator reckons with for one site: no less than the protocol's, and no more
    than `MOST_RAISE` times that.

    Args:
        promised: the protocol's for this round.
        told: what the site says that it used; None: nothing.

    >>> accepted_noise(0.5, 0.8), accepted_noise(0.5, 0.1), accepted_noise(0.5, 1e9)
    (0.8, 0.5, 2.0)
    """
    if told is None or not math.isfinite(told):
        return promised
    return min(max(promised, told), MOST_RAISE * promised)


def raised(protocol: Protocol, round_number: int, told: float | None) -> Protocol:
    """The protocol with the noise that is reckoned with for one site in one round; for the bound of its update.

    Args:
        told: as in :func:`accepted_noise`.
    """
    promised = protocol.noise_multiplier(round_number)
    if not protocol.private or (accepted := accepted_noise(promised, told)) == promised:
        return protocol
    noise = protocol.privacy.noise_multiplier * accepted / promised
    return protocol.model_copy(update={"privacy": protocol.privacy.model_copy(update={"noise_multiplier": noise})})
