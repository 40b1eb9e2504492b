"""How far one woman can move what her hospital adds up, whatever her data: at most C.

Her own share of the sum is what a step over her alone leaves with a silent generator, and what her coming changes in
the sum of others. She comes as she is, and as a hostile importer could make her: every value times a million, all four
films, the other label, values that are no numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from client.training.features import Films
from shared_model.cohort.batch import PatientBatch
from shared_model.protocol import PhaseTerms, Protocol
from simulations.privacy_audit.finding import Finding, Verdict
from simulations.privacy_audit.instruments import Silent, joined
from simulations.privacy_audit.subject import Indices, Moves, Subject, bare

WOMEN = 6
COMPANY = 7      # other women in the step that she comes to
SCALE = 1e6
TOLERANCE = 1e-4  # relative: the engines sum in float32
EPS32 = 2.0**-23  # weights are float32: what a step adds is known to so much of their length


def check_sensitivity(subject: Subject, *, tick: Callable[[], None] = lambda: None) -> list[Finding]:
    """One finding for each phase."""
    return [_check_phase(subject, phase, tick) for _, phase in subject.phases]


def _check_phase(subject: Subject, phase: PhaseTerms, tick: Callable[[], None]) -> Finding:
    unit = 1.0 / subject.protocol.privacy.clip
    protocol = bare(subject.protocol, phase, site=subject.site, steps=1, unit=unit)
    chosen = subject.indices[: WOMEN + COMPANY]
    company = subject.cohort.batch(chosen[WOMEN:] if len(chosen) > WOMEN else chosen[:1])
    without = _moves(subject, protocol, joined([company]))
    worst, worst_name, broken = 0.0, "", []
    weights = math.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in subject.weights.values()))
    limit = 1.0 + TOLERANCE + EPS32 * weights
    for who in chosen[:WOMEN]:
        for name, woman in versions(subject.cohort.batch([int(who)])):
            alone = _norm(_moves(subject, protocol, joined([woman])))
            with_her = _moves(subject, protocol, joined([company, woman]))
            joining = _norm({key: with_her[key] - without[key] for key in without})
            # In company both sums round, and the sum of the others is longer than hers.
            allowed = limit + len(company) * (TOLERANCE + EPS32)
            for value, bound, where in ((alone, limit, "alone"), (joining, allowed, "joining others")):
                if not value <= bound:
                    broken.append(f"a woman {name}, {where}: {value:.3g} x C")
                if math.isnan(value) or value > worst:
                    worst, worst_name = value, f"{name}, {where}"
            if name == NOT_A_NUMBER and alone > 0:
                broken.append(f"a woman {name} moves the sum by {alone:.3g} x C, and shows so that she is there")
        tick()
    return Finding(
        check="sensitivity", title=f"sensitivity, phase `{phase.name}`",
        verdict=Verdict.BROKEN if broken else Verdict.HELD,
        words="; ".join(broken[:3]) if broken else (
            f"{len(chosen[:WOMEN])} women in {len(VERSIONS)} versions, alone and joining others: the most that one "
            f"moves the sum is {worst:.4f} x C ({worst_name})"
        ),
        figures={"greatest": worst, "allowed": limit, "clip": subject.protocol.privacy.clip},
    )  # fmt: skip


NOT_A_NUMBER = "whose values are no numbers"
VERSIONS = ("as she is", "times a million", "times minus a million", "with all films, times a million",
            "with the other label", NOT_A_NUMBER)  # fmt: skip


def versions(woman: PatientBatch) -> Iterator[tuple[str, PatientBatch]]:
    """One woman (B = 1) in each of `VERSIONS`."""
    def scaled(factor: float) -> PatientBatch:
        return replace(woman, pixels_BVCHW=woman.pixels_BVCHW * factor, clinical_BF=woman.clinical_BF * factor,
                       labels_B=1 - woman.labels_B)  # fmt: skip

    noise = torch.rand(woman.pixels_BVCHW.shape, generator=torch.Generator().manual_seed(5))
    full = replace(
        woman, pixels_BVCHW=torch.where(woman.view_mask_BV[..., None, None, None], woman.pixels_BVCHW, noise) * SCALE,
        view_mask_BV=torch.ones_like(woman.view_mask_BV), clinical_mask_B=torch.ones_like(woman.clinical_mask_B),
        clinical_BF=(woman.clinical_BF + 1.0) * SCALE,
    )  # fmt: skip
    nothing = replace(woman, labels_B=torch.full_like(woman.labels_B, torch.nan),
                      clinical_BF=torch.full_like(woman.clinical_BF, torch.nan))  # fmt: skip
    made = (woman, scaled(SCALE), scaled(-SCALE), full, replace(woman, labels_B=1 - woman.labels_B), nothing)
    yield from zip(VERSIONS, made, strict=True)


def _moves(subject: Subject, protocol: Protocol, cohort: Films) -> Moves:
    every: Indices = np.arange(len(cohort.labels))
    return subject.moves(protocol, cohort=cohort, indices=every, randomness=Silent())


def _norm(moves: Moves) -> float:
    return math.sqrt(sum(float(np.square(values).sum()) for values in moves.values()))
