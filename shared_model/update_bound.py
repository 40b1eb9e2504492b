"""How far an honest site can go in one round; the coordinator's sanity gate and each site's egress gate ask it.

T steps of size lr (the greater of the fusion part's and the encoder's), momentum m:

* DP-SGD (Abadi et al. 2016, https://arxiv.org/abs/1607.00133). A step moves by lr (sum_i clip(g_i) + sigma C z) / B,
  B the public expected batch, z standard normal in P dimensions. At most N_T patients are drawn over all steps, each
  moving the sum by at most C; the noise of all steps together is Gaussian with standard deviation at most
  sigma C sqrt(T) per coordinate, hence
      bound = lr / ((1 - m) B) * (N_T C + sigma C sqrt(T) (sqrt(P) + sqrt(2 x))),   x = ln(1 / TAIL)
  by Laurent and Massart (2000), lemma 1: a chi variable exceeds sqrt(P) + sqrt(2 x) with probability at most exp(-x).
  For one coordinate of the P, sqrt(2 ln(2 P / TAIL)) stands in place of sqrt(P) + sqrt(2 x) (union bound).
  N_T has a mean mu of at most T B times `ROUNDING` (B comes from a *rounded* cohort size); by Bernstein's inequality a
  Poisson-binomial number exceeds mu + sqrt(2 mu x) + 2 x / 3 with probability at most exp(-x).
* SGD with gradients clipped to G: bound = lr T G / (1 - m).
* AdamW: a coordinate moves by about lr a step, hence bound = lr sqrt(P) T; `ADAM_SLACK` covers steps after a quiet
  stretch, in which |m_t| / sqrt(v_t) exceeds 1.

Weight decay d adds at most lr d T |w| / (1 - m), rounding of the stored float32 weights 2^-24 |w| a step.
A FedProx pull towards w (with lr mu <= 1) and an average of the iterates (EMA) add nothing. A SCAFFOLD correction c
(plain SGD only) moves each of T steps by lr |c| more, lr the fusion part's: see `server.aggregation.scaffold` for its
units. Tensors that stay at a site (`personal`) come back as what was sent plus the site's own step, which the bound
covers as it is.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from shared_model.errors import ProtocolError
from shared_model.messages import Arrays
from shared_model.protocol import Protocol

TAIL: Final = 1e-9  # probability with which an honest update may be refused
ROUNDING: Final = 1.5  # how much larger a cohort may be than its rounded public size
ADAM_SLACK: Final = 2.0
FLOAT_SLACK: Final = 1.001  # sums in float32 at the site


def norm_of_difference(update: Arrays, base: Arrays) -> float:
    """L2 norm of `update - base` over all tensors, in float64 (a float32 square overflows at 2e19)."""
    total = 0.0
    for name in sorted(base):
        delta = update[name].astype(np.float64).ravel() - base[name].astype(np.float64).ravel()
        total += float(delta @ delta)
    return math.sqrt(total)


def norm_bound(
    protocol: Protocol, round_number: int, base: Arrays, *, site: str, correction: float = 0.0
) -> float:
    """Greatest L2 distance from `base` that an honest site can reach in one round; derivation in the docstring above.

    Args:
        correction: L2 norm of the SCAFFOLD correction that the site was sent.

    Raises:
        ProtocolError: the protocol bounds nothing (SGD without privacy and without gradient clipping).
    """
    parameters = sum(int(array.size) for array in base.values())
    reach = _reach(protocol, round_number, parameters, site, coordinate=False)
    reach += _gain(protocol) * protocol.learning_rate(round_number) * protocol.steps(round_number) * correction
    size = math.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in base.values()))
    return _with_decay(protocol, round_number, reach, size)


def coordinate_bound(
    protocol: Protocol, round_number: int, base: Arrays, *, site: str, correction: float = 0.0
) -> float:
    """Greatest change of any one number of `base` by an honest site in one round.

    Args:
        correction: greatest absolute number in the SCAFFOLD correction that the site was sent.

    Raises:
        ProtocolError: as :func:`norm_bound`.
    """
    parameters = sum(int(array.size) for array in base.values())
    reach = _reach(protocol, round_number, parameters, site, coordinate=True)
    reach += _gain(protocol) * protocol.learning_rate(round_number) * protocol.steps(round_number) * correction
    greatest = max((float(np.abs(array).max()) for array in base.values() if array.size), default=0.0)
    return _with_decay(protocol, round_number, reach, greatest + reach)


def _reach(
    protocol: Protocol, round_number: int, parameters: int, site: str, *, coordinate: bool
) -> float:
    """The way of all steps together, over all `parameters` or for any one of them, without decay and corrections."""
    training, steps = protocol.training, protocol.steps(round_number)
    rate = _rate(protocol, round_number)
    if training.optimizer == "adamw":
        return ADAM_SLACK * rate * (1.0 if coordinate else math.sqrt(parameters)) * steps
    if protocol.private:
        way = _private_sum(protocol, round_number, parameters, site, coordinate=coordinate)
        return _gain(protocol) * rate * way / protocol.expected_batch(site, round_number)
    if training.gradient_clip > 0:
        return _gain(protocol) * rate * steps * training.gradient_clip
    raise ProtocolError(
        "training.gradient_clip: SGD without privacy and without clipping leaves the size of an update unbounded, "
        "so that the server could not tell a broken update from a good one", found=0, expected="above 0",
        remedy="set training.gradient_clip",
    )  # fmt: skip


def _private_sum(
    protocol: Protocol, round_number: int, parameters: int, site: str, *, coordinate: bool
) -> float:
    """Greatest norm (or number) of all steps' clipped and noised sums together, in units of the gradient."""
    x = math.log(1.0 / TAIL)
    steps = protocol.steps(round_number)
    mean = ROUNDING * steps * protocol.expected_batch(site, round_number)
    drawn = mean + math.sqrt(2.0 * mean * x) + 2.0 * x / 3.0
    clip, sigma = protocol.privacy.clip, protocol.noise_multiplier(round_number)
    if coordinate:
        spread = math.sqrt(2.0 * math.log(2.0 * max(parameters, 1) / TAIL))
    else:
        spread = math.sqrt(parameters) + math.sqrt(2.0 * x)
    return clip * (drawn + sigma * math.sqrt(steps) * spread)


def _with_decay(protocol: Protocol, round_number: int, reach: float, size: float) -> float:
    """`reach` with what weight decay and rounding add to weights of this size."""
    steps = protocol.steps(round_number)
    decay = _gain(protocol) * _rate(protocol, round_number) * protocol.training.weight_decay * steps * size
    rounding = 2.0**-23 * (steps + 1) * size  # twice the bound: the size may grow on the way
    return FLOAT_SLACK * (reach + decay) + rounding


def _rate(protocol: Protocol, round_number: int) -> float:
    phase = protocol.training.phase(round_number)
    return protocol.learning_rate(round_number) * max(1.0, phase.encoder_rate)


def _gain(protocol: Protocol) -> float:
    """How much longer momentum makes the way of one step, in the end."""
    return 1.0 / (1.0 - protocol.training.momentum) if protocol.training.optimizer == "sgd" else 1.0
