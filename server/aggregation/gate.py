"""The sanity gate: decides whether one site's update may enter the average; called by the round loop beforehand.

Flower averages whatever comes: one NaN makes the model NaN, one update times 1000 carries it away, a broadcastable
wrong shape is accepted in silence. The gate knows only the round's weights and the protocol: no update that an honest
site can produce is refused (but with probability `TAIL`), and none that is further away than that is accepted. It is no
defence against a site that lies within the bound, which `shared_model.update_bound` derives; each site's egress gate
asks the same one. What the strategy makes of the updates that passed is no matter of the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shared_model.clamp import raised
from shared_model.messages import Arrays
from shared_model.protocol import Protocol
from shared_model.update_bound import norm_bound as norm_bound
from shared_model.update_bound import norm_of_difference as norm_of_difference

Code = Literal["tensors", "shape", "non_finite", "norm"]


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why an update is refused: a stable code for counting, and words without any value of the update but its norm."""

    code: Code
    text: str


def inspect(update: Arrays, base: Arrays, *, norm_bound: float) -> Rejection | None:
    """Check one update against the round's weights; None when it may be averaged.

    Args:
        update: weights that the site returned.
        base: weights that it was sent; names and shapes must be exactly these.
        norm_bound: greatest L2 norm of `update - base` over all tensors, see :func:`norm_bound`.
    """
    if set(update) != set(base):
        missing, unknown = len(set(base) - set(update)), len(set(update) - set(base))
        return Rejection(code="tensors", text=f"not the model's tensors: {missing} missing, {unknown} unknown")
    for name in sorted(base):
        if update[name].shape != base[name].shape:
            return Rejection(code="shape", text=f"tensor {name} has shape {update[name].shape}, not {base[name].shape}")
        if not np.isfinite(update[name]).all():
            return Rejection(code="non_finite", text=f"tensor {name} holds NaN or infinity")
    distance = norm_of_difference(update, base)
    if not distance <= norm_bound:
        return Rejection(code="norm", text=f"norm of the update {distance:.4g}, the protocol allows {norm_bound:.4g}")
    return None


def norm_bounds(
    protocol: Protocol, round_number: int, base: Arrays, *, corrections: Mapping[str, float] | None = None,
    noise: Mapping[str, float] | None = None,
) -> Mapping[str, float]:  # fmt: skip
    """The bound of each site for one round; sites differ by their public expected batch under privacy, and by the norm
    of the SCAFFOLD correction that they were sent.

    Args:
        noise: the noise multiplier that a site says it used: more than the protocol's where its own policy clamps. It
            is believed up to `shared_model.clamp.MOST_RAISE` times the protocol's, which trainers hold, too.
    """
    sent, told = corrections or {}, noise or {}
    return {
        site.name: norm_bound(raised(protocol, round_number, told.get(site.name)), round_number, base, site=site.name,
                              correction=sent.get(site.name, 0.0))
        for site in protocol.federation.sites
    }  # fmt: skip
