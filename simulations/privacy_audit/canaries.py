"""Planted women: an auditor who sees every step guesses which of them were there; a lower bound on epsilon follows.

The canaries' gradients are as long as clipping allows and point in different directions (table rows along the axes of
random orthogonal frames, or noise for films where the phase knows no table). A fair coin puts each into the data
or not; the hospital has no other women, which no promise of privacy excludes. One step a round, always from the same
weights: what a coordinator may ask who chooses them.

The bound can refute a claim only below what the number of canaries allows (`power`). It finds gross faults: clipping
forgotten or by film, a woman in every batch. Halved noise or one silent tensor are `noise`'s to find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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

ERROR = 1e-2     # probability that a correct implementation is accused, for each phase and length
MOST_STEPS = 400
FRAMES = 4      # of canaries where hidden layers give them room; one where the table's own columns are all there is
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
    delta, contributions_MP = subject.protocol.privacy.delta, contributions(subject, phase, canaries)
    inside = np.random.default_rng().random(len(canaries)) < 0.5  # fresh coins: the confidence rests on them
    if not inside.any():
        inside[0] = True  # training refuses an empty hospital; one in 2^M audits
    members = np.flatnonzero(inside)
    protocol = bare(subject.protocol, phase, site=subject.site, steps=1, unit=1.0 / clip, sample_rate=rate)
    cache = subject.cache(canaries)
    watcher = Watcher(contributions_MP, rate=rate, sigma=sigma)
    rows = []
    for step in range(steps):
        randomness = randomness_for(protocol, site=subject.site, round_number=step + 1)
        watcher.see(_flat(subject.moves(protocol, cohort=canaries, indices=members, randomness=randomness,
                                        features=cache)))  # fmt: skip
        if step + 1 in (min(per_round, steps), steps):
            claim = Account().add(noise_multiplier=sigma, sample_rate=rate, steps=step + 1).epsilon(delta=delta)
            found = bound(watcher.scores(), inside, delta=delta, error=ERROR / 2)
            rows.append(("one round" if step + 1 < steps else "the phase", step + 1, found, claim))
        if step % 8 == 0:
            tick()
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
        figures={"bound_round": rows[0][2].epsilon, "claim_round": rows[0][3], "bound": rows[-1][2].epsilon,
                 "claim": rows[-1][3], "canaries": len(canaries), "steps": steps, "power": most,
                 "confidence": 1 - ERROR},
    )  # fmt: skip


def make_canaries(subject: Subject, phase: PhaseTerms) -> PatientBatch:
    """A woman for each column of the table (or four), rows in as many random orthogonal frames: within a frame none
    disturbs another. Films of noise in a phase that learns from films alone."""
    like, generator = subject.cohort.batch(subject.indices[:1]), torch.Generator().manual_seed(SEED)
    features = like.clinical_BF.shape[1]
    by_film = phase.objective == "image"
    frames = 1 if phase.scope == "linear" else FRAMES
    count = FILM_CANARIES if by_film else frames * features
    square = torch.randn(frames, features, features, generator=generator, dtype=torch.float64)
    frame_MF = torch.linalg.qr(square)[0].flatten(0, 1).float()
    shape = (count, *like.pixels_BVCHW.shape[1:])
    pixels = torch.rand(shape, generator=generator) if by_film else torch.zeros(shape)
    films = torch.zeros(count, shape[1], dtype=torch.bool)
    films[:, 0] = by_film
    pixels[:, 1:] = 0.0
    made = PatientBatch(
        pixels, films, torch.zeros(count, features) if by_film else LENGTH * frame_MF,
        torch.full((count,), not by_film), torch.zeros(count),
    )  # fmt: skip
    with torch.inference_mode():
        output = subject.model().eval()(made)
    logit = output.image_logit_B if by_film else output.logit_B
    return replace(made, labels_B=(logit < 0).float())  # the answer that the model does not expect moves it most


def contributions(subject: Subject, phase: PhaseTerms, canaries: Women) -> NDArray[np.float64]:
    """What each canary alone adds to a step, [M, P] in units of C."""
    protocol = bare(subject.protocol, phase, site=subject.site, steps=1, unit=1.0 / subject.protocol.privacy.clip)
    cache = subject.cache(canaries)
    return np.stack([
        _flat(subject.moves(protocol, cohort=canaries, indices=np.array([who]), randomness=Silent(), features=cache))
        for who in range(len(canaries))
    ])  # fmt: skip


class Watcher:
    """Adds up what steps leave, and says how likely each canary is to be in it.

    The score is the linear estimate of least error: matched filters where noise is large, and canaries told apart by
    least squares where it is small. How large it is, is measured where no canary points.

    Args:
        contributions_MP: what each adds when drawn, in units of C. rate, sigma: as promised.
    """

    def __init__(self, contributions_MP: NDArray[np.float64], *, rate: float, sigma: float) -> None:
        self._canaries_MP, self._rate, self._sigma = contributions_MP, rate, sigma
        _, values, right = np.linalg.svd(contributions_MP, full_matrices=False)
        self._basis_RP = right[values > 1e-6 * values[0]]
        self._total_P = np.zeros(contributions_MP.shape[1])
        self._beside, self._steps = 0.0, 0

    def see(self, moved_P: NDArray[np.float64]) -> None:
        """One step's noised sum, in units of C."""
        self._total_P += moved_P
        self._beside += float(moved_P @ moved_P - np.square(self._basis_RP @ moved_P).sum())
        self._steps += 1

    def scores(self) -> NDArray[np.float64]:
        """[M], above zero for more likely in than out."""
        beside = self._canaries_MP.shape[1] - len(self._basis_RP)
        variance = self._beside / (beside * self._steps) if beside else self._sigma**2
        expected_MP = self._rate * self._steps * self._canaries_MP
        prior = 0.25  # variance of a fair coin
        matrix_MM = prior * expected_MP @ expected_MP.T + (self._steps * max(variance, 0.0) + 1e-9) * np.eye(
            len(expected_MP)
        )
        seen_M = expected_MP @ (self._total_P - 0.5 * expected_MP.sum(0))
        return np.asarray(np.linalg.solve(matrix_MM, seen_M), dtype=np.float64)


def _flat(moves: Moves) -> NDArray[np.float64]:
    return np.concatenate([values.ravel() for values in moves.values()])

