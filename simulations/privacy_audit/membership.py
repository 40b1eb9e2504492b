"""Membership inference against the finished model: who was among the women that it was trained on?

The likelihood ratio attack of Carlini et al. (2022, https://arxiv.org/abs/2112.03570) in its offline form with a common
spread: shadow models, each trained by the product's own function over all rounds on a random half of the women, say
how a woman's loss is distributed when she was in and when she was not. Run twice: as the study is, and without
clipping and noise. The attacker knows everything but who was in; real ones know less.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from client.training.features import FeatureCache
from client.training.local import randomness_for
from shared_model.protocol import Protocol
from simulations.privacy_audit.finding import Finding, Verdict
from simulations.privacy_audit.instruments import Silent, Women, taken
from simulations.privacy_audit.one_run import bound
from simulations.privacy_audit.subject import Subject, account_of

ERROR = 1e-3
NO_CLIP = 1e6
MOST_WOMEN = 400
LOW = 0.01  # false alarms at which the share of members found is told


def check_membership(subject: Subject, *, shadows: int, tick: Callable[[], None] = lambda: None) -> list[Finding]:
    """Attack with that many shadow models, and as many again without protection; 0: as many as take minutes."""
    if shadows == 0 and not subject.cheap:
        return [Finding(
            check="membership", title="membership inference", verdict=Verdict.LEFT_OUT,
            words="a phase trains the view encoder, so that each of some 30 trainings takes as long as the study; "
            "--shadows N runs it all the same",
        )]  # fmt: skip
    count = shadows or 16
    protected = attack(subject, subject.protocol, count=count, silent=False, tick=tick)
    bare_terms = subject.protocol.privacy.model_copy(update={"clip": NO_CLIP})
    unprotected = attack(subject, subject.protocol.model_copy(update={"privacy": bare_terms}), count=count, silent=True,
                         tick=tick)  # fmt: skip
    delta = subject.protocol.privacy.delta
    found = bound(protected[0], protected[1], delta=delta, error=ERROR)
    claim = account_of(subject.protocol, subject.protocol.rounds).epsilon(delta=delta)
    figures = {**_figures("protected", *protected), **_figures("unprotected", *unprotected)}
    return [Finding(
        check="membership", title="membership inference",
        verdict=Verdict.BROKEN if found.epsilon > claim else Verdict.HELD,
        words=f"{count} shadow models, {len(protected[0])} women: AUC {figures['protected_auc']:.3f} of guessing who "
        f"was in (0.5 is chance; {figures['unprotected_auc']:.3f} without clipping and noise), "
        f"{figures['protected_found']:.1%} of members found at 1 % false alarms ({figures['unprotected_found']:.1%}); "
        f"epsilon at least {found.epsilon:.2f}, claimed {claim:.2f}",
        figures={**figures, "bound": found.epsilon, "claim": claim, "shadows": count, "women": len(protected[0])},
    )]  # fmt: skip


def attack(
    subject: Subject, protocol: Protocol, *, count: int, silent: bool, tick: Callable[[], None]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of the women against a target model, and who was in it."""
    women = taken(subject.cohort, subject.indices[:MOST_WOMEN])
    cache, random = subject.cache(women), np.random.default_rng()  # fresh coins, as for canaries
    inside_KN = random.random((count + 1, len(women))) < 0.5
    inside_KN[:, 0] |= ~inside_KN.any(1)
    rows = []
    for members_N in inside_KN:
        rows.append(_margins(subject, protocol, women, cache, np.flatnonzero(members_N), silent))
        tick()
    margins_KN = np.stack(rows)
    return likelihood_ratio(margins_KN[1:], inside_KN[1:], margins_KN[0]), inside_KN[0]


def _margins(
    subject: Subject, protocol: Protocol, women: Women, cache: FeatureCache, members: NDArray[np.int64], silent: bool
) -> NDArray[np.float64]:  # fmt: skip
    """Train over all rounds on the members; the log odds of the true answer for every woman."""
    model = subject.model()
    for number in range(1, protocol.rounds + 1):
        randomness = Silent() if silent else randomness_for(protocol, site=subject.site, round_number=number)
        subject.train(protocol, cohort=women, indices=members, randomness=randomness, round_number=number, model=model,
                      features=cache)  # fmt: skip
    every = np.arange(len(women))
    with torch.inference_mode():
        encoded = cache.encoded(model, every, device=subject.device)
        model.encoded = True
        logit = model(encoded.batch(every)).logit_B.double().cpu().numpy()
        model.encoded = False
    return np.asarray(np.where(women.labels == 1, logit, -logit), dtype=np.float64)


def likelihood_ratio(
    shadow_KN: NDArray[np.float64], inside_KN: NDArray[np.bool_], target_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log of (in against out) for each woman, Gaussian with her own two means and spreads common to all."""
    def moments(mask_KN: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
        count_N = np.maximum(mask_KN.sum(0), 1)
        mean_N = np.where(mask_KN, shadow_KN, 0.0).sum(0) / count_N
        deviation_KN = np.where(mask_KN, shadow_KN - mean_N, 0.0)
        degrees = max(1, int(mask_KN.sum()) - shadow_KN.shape[1])
        return mean_N, math.sqrt(float((deviation_KN**2).sum()) / degrees) + 1e-9

    (in_N, in_sd), (out_N, out_sd) = moments(inside_KN), moments(~inside_KN)
    ratio_N = stats.norm.logpdf(target_N, in_N, in_sd) - stats.norm.logpdf(target_N, out_N, out_sd)
    return np.asarray(ratio_N, dtype=np.float64)


def _figures(name: str, scores: NDArray[np.float64], inside: NDArray[np.bool_]) -> dict[str, float]:
    members, others = scores[inside], scores[~inside]
    ranks = stats.rankdata(scores)
    auc = (ranks[inside].sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others))
    return {f"{name}_auc": float(auc), f"{name}_found": float(np.mean(members > np.quantile(others, 1 - LOW)))}
