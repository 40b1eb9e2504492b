"""Planted women: an auditor who sees every step guesses which of them were there; a lower bound on epsilon follows.

The canaries' gradients are as long as clipping allows and point in different directions (table rows along the axes of
random orthogonal frames, or noise for films where the phase knows no table). A fair coin puts each into the data
or not; the hospital has no other women, which no promise of privacy excludes. One step a round, always from the same
weights: what a coordinator may ask who chooses them. The score is the log likelihood ratio of the promised mechanism.

The bound can refute a claim only below what the number of canaries allows (`power`). It finds gross faults: clipping
forgotten or by film, a woman in every batch. Halved noise or one silent tensor are `noise`'s to find.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.accountant import Account
from client.training.local import randomness_for
from shared_model.cohort.batch import PatientBatch
from shared_model.protocol import PhaseTerms
from simulations.privacy_audit.finding import Finding, Verdict
from simulations.privacy_audit.instruments import Silent, Women
from simulations.privacy_audit.noise import sigma_of, steps_of
from simulations.privacy_audit.one_run import bound, power
from simulations.privacy_audit.subject import Moves, Subject, bare

ERROR = 1e-3     # probability that a correct implementation is accused, for each phase and length
MOST_STEPS = 400
MOST_CANARIES = 400
FRAMES = 8
FILM_CANARIES = 64  # each step encodes their films
LENGTH = 30.0    # of a canary's row: her gradient is far longer than any usual C
SEED = 20231


def check_canaries(subject: Subject, *, tick: Callable[[], None] = lambda: None) -> list[Finding]:
    """One finding for each phase: over one round, and over the whole phase (400 steps at most)."""
    return [_check_phase(subject, phase, tick) for _, phase in subject.phases]


def _check_phase(subject: Subject, phase: PhaseTerms, tick: Callable[[], None]) -> Finding:
    per_round, clip = steps_of(subject, phase), subject.protocol.privacy.clip
    steps = min(MOST_STEPS, per_round * phase.rounds)
    rate, sigma = phase.sample_rate or subject.protocol.training.sample_rate, sigma_of(subject, phase)
    canaries = Women(make_canaries(subject, phase))
    directions_MP, lengths_M = contributions(subject, phase, canaries)
    random = np.random.default_rng(SEED)
    inside = random.random(len(canaries)) < 0.5
    inside[random.integers(len(canaries))] = True  # training refuses an empty hospital
    members = np.flatnonzero(inside)
    protocol = bare(subject.protocol, phase, site=subject.site, steps=1, unit=1.0 / clip, sample_rate=rate)
    cache = subject.cache(canaries)
    scores_M, after_round = np.zeros(len(canaries)), np.zeros(len(canaries))
    for step in range(steps):
        randomness = randomness_for(protocol, site=subject.site, round_number=step + 1)
        moved = _flat(subject.moves(protocol, cohort=canaries, indices=members, randomness=randomness, features=cache))
        scores_M += evidence(directions_MP @ moved, lengths_M, rate=rate, sigma=sigma)
        if step + 1 == min(per_round, steps):
            after_round = scores_M.copy()
        if step % 8 == 0:
            tick()
    delta = subject.protocol.privacy.delta
    rows = []
    for what, count, scores in (("one round", min(per_round, steps), after_round), ("the phase", steps, scores_M)):
        claim = Account().add(noise_multiplier=sigma, sample_rate=rate, steps=count).epsilon(delta=delta)
        rows.append((what, count, bound(scores, inside, delta=delta, error=ERROR / 2), claim))
    most = power(len(canaries), delta=delta, error=ERROR / 2)
    broken = [row for row in rows if row[2].epsilon > row[3]]
    words = "; ".join(
        f"{what} ({count} steps): epsilon at least {found.epsilon:.2f} "
        f"({found.right} of {found.guesses} guesses right), claimed {claim:.2f}" for what, count, found, claim in rows
    )  # fmt: skip
    return Finding(
        check="canaries", title=f"canaries, phase `{phase.name}`",
        verdict=Verdict.BROKEN if broken else Verdict.HELD,
        words=f"{words}. {len(canaries)} canaries refute claims below {most:.2f} at most",
        figures={"bound_round": rows[0][2].epsilon, "claim_round": rows[0][3], "bound": rows[1][2].epsilon,
                 "claim": rows[1][3], "canaries": len(canaries), "steps": steps, "power": most,
                 "confidence": 1 - ERROR},
    )  # fmt: skip


def make_canaries(subject: Subject, phase: PhaseTerms) -> PatientBatch:
    """Eight women for each column of the table, their rows in as many random orthogonal frames: within a frame none
    disturbs another. Films of noise in a phase that learns from films alone."""
    like, generator = subject.cohort.batch(subject.indices[:1]), torch.Generator().manual_seed(SEED)
    features = like.clinical_BF.shape[1]
    by_film = phase.objective == "image"
    count = FILM_CANARIES if by_film else min(MOST_CANARIES, FRAMES * features)
    square = torch.randn(FRAMES, features, features, generator=generator, dtype=torch.float64)
    frame_MF = torch.linalg.qr(square)[0].flatten(0, 1)[:count].float()
    shape = (count, *like.pixels_BVCHW.shape[1:])
    pixels = torch.rand(shape, generator=generator) if by_film else torch.zeros(shape)
    films = torch.zeros(count, shape[1], dtype=torch.bool)
    films[:, 0] = by_film
    pixels[:, 1:] = 0.0
    return PatientBatch(
        pixels, films, torch.zeros(count, features) if by_film else LENGTH * frame_MF,
        torch.full((count,), not by_film), (torch.arange(count) % 2).float(),
    )  # fmt: skip


def contributions(
    subject: Subject, phase: PhaseTerms, canaries: Women
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each canary alone adds to a step: direction [M, P] of length 1, and length [M] in units of C."""
    protocol = bare(subject.protocol, phase, site=subject.site, steps=1, unit=1.0 / subject.protocol.privacy.clip)
    cache = subject.cache(canaries)
    rows = [
        _flat(subject.moves(protocol, cohort=canaries, indices=np.array([who]), randomness=Silent(), features=cache))
        for who in range(len(canaries))
    ]
    rows_MP = np.stack(rows)
    lengths_M = np.linalg.norm(rows_MP, axis=1)
    return rows_MP / np.maximum(lengths_M, 1e-12)[:, None], lengths_M


def evidence(
    seen_M: NDArray[np.float64], lengths_M: NDArray[np.float64], *, rate: float, sigma: float
) -> NDArray[np.float64]:
    """Log likelihood ratio of a step: N(0, sigma^2) against the same with, at probability q, the canary's length added."""
    exponent_M = (2 * seen_M * lengths_M - lengths_M**2) / (2 * sigma**2)
    with np.errstate(divide="ignore"):
        ratio_M = np.logaddexp(np.log1p(-rate) if rate < 1 else -math.inf, math.log(rate) + exponent_M)
    return np.asarray(ratio_M, dtype=np.float64)


def _flat(moves: Moves) -> NDArray[np.float64]:
    return np.concatenate([values.ravel() for values in moves.values()])

