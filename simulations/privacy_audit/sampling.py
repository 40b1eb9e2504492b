"""Whether women enter the steps as the accountant assumes: each by herself, with the public probability, once.

Amplification by sampling holds for Poisson samples alone. Measured on whole rounds of the study's own steps and rate,
over as many women as the hospital trains on, with what training drew and what it then loaded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from client.training.local import randomness_for
from shared_model.protocol import PhaseTerms
from simulations.privacy_audit.finding import Finding, Verdict
from simulations.privacy_audit.instruments import Recorder, unreadable
from simulations.privacy_audit.subject import Subject, bare

ALPHA = 1e-5
STEPS = 400  # at least so many samples: a rate wrong by a tenth is seen


def check_sampling(subject: Subject, *, tick: Callable[[], None] = lambda: None) -> list[Finding]:
    """One finding for each phase."""
    return [_check_phase(subject, phase, tick) for _, phase in subject.phases]


def _check_phase(subject: Subject, phase: PhaseTerms, tick: Callable[[], None]) -> Finding:
    rate = phase.sample_rate or subject.protocol.training.sample_rate
    per_round = phase.steps_per_round or subject.protocol.training.steps_per_round
    protocol = bare(subject.protocol, phase, site=subject.site, steps=per_round, unit=1.0, sample_rate=rate)
    population = len(subject.indices)
    women = unreadable(population, subject.cohort.batch(subject.indices[:1]))
    drawn = np.zeros(population, dtype=np.int64)
    sizes: list[int] = []
    faults: set[str] = set()
    cache = subject.cache(women)
    for number in range(1, -(-STEPS // per_round) + 1):
        recorder = Recorder(randomness_for(protocol, site=subject.site, round_number=number))
        women.seen.clear()
        subject.train(protocol, cohort=women, indices=np.arange(population), randomness=recorder, features=cache)
        members = [sample for _, _, sample in recorder.samples]
        loaded = women.seen[-sum(map(len, members)):] if any(map(len, members)) else []
        if len(members) != per_round:
            faults.add(f"{len(members)} samples in a round of {per_round} steps")
        if any(asked != rate for _, asked, _ in recorder.samples):
            faults.add("another sampling rate than the protocol's")
        if loaded != [int(member) for sample in members for member in sample]:
            faults.add("other women were loaded than were drawn")
        for sample in members:
            drawn[sample] += 1
            sizes.append(len(sample))
        tick()
    faults |= set(_faults(drawn, sizes, rate))
    share = float(drawn.sum() / (population * max(1, len(sizes))))
    return Finding(
        check="sampling", title=f"sampling, phase `{phase.name}`",
        verdict=Verdict.BROKEN if faults else Verdict.HELD,
        words="; ".join(sorted(faults)) if faults else (
            f"{population} women in {len(sizes)} steps: each by herself with probability {share:.4f} "
            f"(promised {rate:g}), what was drawn was loaded, once"
        ),
        figures={"rate": rate, "measured": share, "steps": len(sizes), "women": population, "false_alarm": ALPHA},
    )  # fmt: skip


def _faults(drawn: NDArray[np.int64], sizes: list[int], rate: float) -> list[str]:
    """What is wrong with how often each woman was drawn, and with the sizes of the samples."""
    women, steps = len(drawn), len(sizes)
    if not steps or rate >= 1.0:
        return [] if rate >= 1.0 and all(size == women for size in sizes) else ["not everybody was in every step"]
    found = []
    level = ALPHA / (2 * women + 2)
    low, high = (float(stats.binom.ppf(p, steps, rate)) for p in (level, 1 - level))
    outside = int(np.sum((drawn < low) | (drawn > high)))
    if outside:
        found.append(f"{outside} women were drawn more or less often than chance allows ({low:.0f} to {high:.0f} of "
                     f"{steps} steps; greatest {int(drawn.max())})")  # fmt: skip
    low, high = (float(stats.binom.ppf(p, women * steps, rate)) for p in (ALPHA / 4, 1 - ALPHA / 4))
    if not low <= drawn.sum() <= high:
        found.append(f"women were drawn {int(drawn.sum())} times, by chance {low:.0f} to {high:.0f}")
    expected = women * rate * (1 - rate)
    ratio = float(np.var(sizes, ddof=1) * (steps - 1) / expected)  # chi-square under the promise, near enough
    low, high = (float(stats.chi2.ppf(p, steps - 1)) for p in (ALPHA / 4, 1 - ALPHA / 4))
    if women * rate >= 5 and not 0.8 * low <= ratio <= 1.25 * high:  # binomial sizes are not quite Gaussian
        found.append("the samples' sizes do not vary as independent draws do")
    return found
