"""Names of the strategies and personalisations that a protocol may choose, and what each needs; used by protocol,
server and launcher. The papers are cited where each one is at work: `server/aggregation`, `client/trainer/personal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

Strategy = Literal[
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "trimmed_mean", "krum", "scaffold"
]  # fmt: skip
Personal = Literal["none", "fedbn_like", "head"]
SecureSum = Literal["none", "masked"]

ROBUST: Final = ("fedmedian", "trimmed_mean", "krum")
LEAST_SUM_SITES: Final = 3  # with two, each takes its own values off the sum and has the other's
MOST_SUM_WEIGHT: Final = 0.75  # of one site: with more, the weighted sum is nearly its update alone

# What a secure sum excludes, and why; printed by `site review`, tested cell by cell.
SECURE_SUM_MATRIX: Final = {
    "fedavg": "", "fedprox": "", "fedavgm": "", "fedadam": "", "fedyogi": "",
    "fedmedian": "the median of each weight needs every site's own update",
    "trimmed_mean": "cutting the extremes needs every site's own update",
    "krum": "distances between updates need every site's own update",
    "scaffold": "its control variates are read off every site's own update",
}  # fmt: skip


def least_replies(strategy: str, byzantine: int) -> int:
    """Replies that a round needs so that `byzantine` = f of them may be arbitrary.

    Median and trimmed mean: 2 f + 1, a minority (Yin et al. 2018, arXiv:1803.01498). Krum: 2 f + 3, from 2 f + 2 < n
    (Blanchard et al. 2017, arXiv:1703.02757, proposition 4.2). 1 for strategies that withstand nobody.
    """
    if strategy == "krum":
        return 2 * byzantine + 3
    return 2 * byzantine + 1 if strategy in ROBUST else 1


def robustness_fault(strategy: str, *, byzantine: int, krum_select: int, quorum: int) -> str:
    """Why a robust strategy would not be one, in words; empty when all is well.

    Args:
        byzantine: f, sites that may send anything within the sanity gate.
        krum_select: how many of the most central updates Krum averages.
        quorum: fewest replies of a round.
    """
    if strategy not in ROBUST:
        return "" if byzantine == 0 else f"byzantine: {strategy} withstands no lying site, found {byzantine}; use 0"
    if byzantine == 0 and strategy != "krum":
        return f"byzantine: {strategy} that need withstand nobody is an unweighted average; use 1 or more, or fedavg"
    need = least_replies(strategy, byzantine)
    if quorum < need:
        return (
            f"quorum: {strategy} withstands {byzantine} lying sites only with {need} or more replies, found a quorum "
            f"of {quorum}; take more sites, a greater quorum, or a smaller `byzantine`"
        )
    if strategy == "krum" and krum_select > quorum - byzantine - 2:
        return (
            f"krum_select: only n - f - 2 updates are surely near honest ones, found {krum_select} of at least "
            f"{quorum} replies, expected at most {quorum - byzantine - 2}"
        )
    return ""


def scaffold_fault(*, optimizer: str, momentum: float, ema_decay: float, proximal_mu: float, personal: str) -> str:
    """Why SCAFFOLD's control variates would be no gradients, in words; empty when all is well.

    They are read off `(x - y_i) / (K eta)`, which is the mean gradient of K plain SGD steps and of nothing else.
    """
    for name, found, wanted in (
        ("training.optimizer", optimizer, "sgd"), ("training.momentum", momentum, 0),
        ("training.ema_decay", ema_decay, 0), ("training.proximal_mu", proximal_mu, 0),
        ("federation.personal", personal, "none"),
    ):  # fmt: skip
        if found != wanted:
            return (
                f"{name}: scaffold takes the mean gradient of a site from the way that its weights went in plain SGD "
                f"steps, found {found}, expected {wanted}"
            )
    return ""


def secure_sum_fault(strategy: str, *, weights: Sequence[float], sites_per_round: int, quorum: int) -> str:
    """Why a study cannot sum its updates securely, in words; empty when it can.

    Args:
        weights: public, of each site.
    """
    if why := SECURE_SUM_MATRIX[strategy]:
        possible = ", ".join(name for name, fault in SECURE_SUM_MATRIX.items() if not fault)
        return f"secure_sum: not with {strategy}: {why}; use one of {possible}, or secure_sum=none"
    if min(len(weights), sites_per_round) < LEAST_SUM_SITES:
        return (
            f"secure_sum: a sum of fewer than {LEAST_SUM_SITES} sites hides nothing, found {len(weights)} sites, "
            f"{sites_per_round} a round"
        )
    if quorum < LEAST_SUM_SITES:
        return f"quorum: a secure sum is opened with {LEAST_SUM_SITES} sites or more, found a quorum of {quorum}"
    share = max(weights) / sum(weights)
    if share > MOST_SUM_WEIGHT:
        return (
            f"secure_sum: one site has {share:.0%} of the weight, so that the sum would nearly be its update, expected "
            f"at most {MOST_SUM_WEIGHT:.0%}"
        )
    return ""


def personal_fault(*, personal: str, weight_decay: float) -> str:
    """Why tensors that stay at a site would defeat the coordinator's bound on updates; empty when all is well."""
    if personal != "none" and weight_decay > 0:
        return (
            f"training.weight_decay: with federation.personal={personal} it shrinks tensors that the coordinator never "
            f"sees, so that it cannot bound an update, found {weight_decay}, expected 0"
        )
    return ""
