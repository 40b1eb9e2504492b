"""The sanity gate: decides whether one site's update may enter the average; called by the round loop beforehand.

Flower averages whatever comes: one NaN makes the model NaN, one update times 1000 carries it away, a broadcastable
wrong shape is accepted in silence. The gate knows only the round's weights and the protocol: no update that an honest
site can produce is refused (but with probability `TAIL`), and none that is further away than that is accepted. It is no
defence against a site that lies within the bound.

How far an honest site can go in T steps of size lr (the greater of the fusion part's and the encoder's), momentum m:

* DP-SGD (Abadi et al. 2016, https://arxiv.org/abs/1607.00133). A step moves by lr (sum_i clip(g_i) + sigma C z) / B,
  B the public expected batch, z standard normal in P dimensions. At most N_T patients are drawn over all steps, each
  moving the sum by at most C; the noise of all steps together is Gaussian with standard deviation at most
  sigma C sqrt(T) per coordinate, hence
      bound = lr / ((1 - m) B) * (N_T C + sigma C sqrt(T) (sqrt(P) + sqrt(2 x))),   x = ln(1 / TAIL)
  by Laurent and Massart (2000), lemma 1: a chi variable exceeds sqrt(P) + sqrt(2 x) with probability at most exp(-x).
  N_T has a mean mu of at most T B times `ROUNDING` (B comes from a *rounded* cohort size); by Bernstein's inequality a
  Poisson-binomial number exceeds mu + sqrt(2 mu x) + 2 x / 3 with probability at most exp(-x).
* SGD with gradients clipped to G: bound = lr T G / (1 - m).
* AdamW: a coordinate moves by about lr a step, hence bound = lr sqrt(P) T; `ADAM_SLACK` covers steps after a quiet
  stretch, in which |m_t| / sqrt(v_t) exceeds 1.

Weight decay d adds at most lr d T |w| / (1 - m), rounding of the stored float32 weights 2^-24 |w| a step.
A FedProx pull towards w (with lr mu <= 1) and an average of the iterates (EMA) add nothing. A SCAFFOLD correction c
(plain SGD only) moves each of T steps by lr |c| more, lr the fusion part's: see `scaffold` for its units. Tensors that
stay at a site (`personal`) come back as what was sent plus the site's own step, which the bound covers as it is.
What the strategy makes of the updates that passed is no matter of the gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shared_model.clamp import raised
from shared_model.errors import ProtocolError
from shared_model.messages import Arrays
from shared_model.protocol import Protocol

TAIL = 1e-9  # probability with which an honest update may be refused
ROUNDING = 1.5  # how much larger a cohort may be than its rounded public size
ADAM_SLACK = 2.0
FLOAT_SLACK = 1.001  # sums in float32 at the site

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


def norm_of_difference(update: Arrays, base: Arrays) -> float:
    """L2 norm of `update - base` over all tensors, in float64 (a float32 square overflows at 2e19)."""
    total = 0.0
    for name in sorted(base):
        delta = update[name].astype(np.float64).ravel() - base[name].astype(np.float64).ravel()
        total += float(delta @ delta)
    return math.sqrt(total)


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


def norm_bound(
    protocol: Protocol, round_number: int, base: Arrays, *, site: str, correction: float = 0.0
) -> float:
    """Greatest distance from `base` that an honest site can reach in one round; derivation in the module's docstring.

    Args:
        correction: L2 norm of the SCAFFOLD correction that the site was sent.

    Raises:
        ProtocolError: the protocol bounds nothing (SGD without privacy and without gradient clipping).
    """
    training, steps = protocol.training, protocol.steps(round_number)
    phase = training.phase(round_number)
    rate = protocol.learning_rate(round_number) * max(1.0, phase.encoder_rate)
    parameters = sum(int(array.size) for array in base.values())
    batch = protocol.expected_batch(site, round_number)
    gain = 1.0 / (1.0 - training.momentum) if training.optimizer == "sgd" else 1.0
    if training.optimizer == "adamw":
        reach = ADAM_SLACK * rate * math.sqrt(parameters) * steps
    elif protocol.private:
        reach = gain * rate * _private_sum(protocol, round_number, parameters, site) / batch
    elif training.gradient_clip > 0:
        reach = gain * rate * steps * training.gradient_clip
    else:
        raise ProtocolError(
            "training.gradient_clip: SGD without privacy and without clipping leaves the size of an update unbounded, "
            "so that the server could not tell a broken update from a good one", found=0, expected="above 0",
            remedy="set training.gradient_clip",
        )  # fmt: skip
    reach += gain * protocol.learning_rate(round_number) * steps * correction
    size = math.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in base.values()))
    decay = gain * rate * training.weight_decay * steps * size
    rounding = 2.0**-23 * (steps + 1) * size  # twice the bound: the size may grow on the way
    return FLOAT_SLACK * (reach + decay) + rounding


def _private_sum(protocol: Protocol, round_number: int, parameters: int, site: str) -> float:
    """Greatest norm of all steps' clipped and noised sums together, in units of the gradient."""
    x = math.log(1.0 / TAIL)
    steps = protocol.steps(round_number)
    mean = ROUNDING * steps * protocol.expected_batch(site, round_number)
    drawn = mean + math.sqrt(2.0 * mean * x) + 2.0 * x / 3.0
    clip, sigma = protocol.privacy.clip, protocol.noise_multiplier(round_number)
    return clip * (drawn + sigma * math.sqrt(steps) * (math.sqrt(parameters) + math.sqrt(2.0 * x)))
