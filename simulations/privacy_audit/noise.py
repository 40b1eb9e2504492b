"""Whether the promised noise reaches every number that leaves, in every step, and never twice.

Two measurements, both of what a round's weights show. *Single steps*: some of the hospital's women, all of them in the
step; the same step with a silent generator is taken away, and what is left is the noise. *Whole rounds*: as many steps
as the study has, over women whose gradients are none, so that everything that left is noise; its variance must be that
of all steps together (one step without noise, or one noise for all steps, gives another).

The tests are exact under the promise: chi-square for the spread, normal for the mean, Kolmogorov and Smirnov for the
shape, and Student's t for the correlation of any two rounds. All of them together raise a false alarm with probability
`ALPHA` at most (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from client.training.local import randomness_for
from shared_model.protocol import PhaseTerms
from simulations.privacy_audit.finding import Finding, Verdict
from simulations.privacy_audit.instruments import Recorder, Silent, taken, unreadable
from simulations.privacy_audit.subject import Indices, Subject, bare

ALPHA = 1e-5        # probability that the whole check accuses a correct implementation
REPEATS = 96        # rounds of each measurement: a tensor of one number with half the noise is seen for certain
WOMEN = 4           # in a single step; the noise does not depend on them
KS_MOST = 50_000    # numbers of a tensor that the test of shape looks at
KS_LEAST = 200
TESTS_A_TENSOR = 3
Rows = Mapping[str, NDArray[np.float64]]  # tensor -> [rounds, numbers], in units of the promised spread
Tick = Callable[[], None]


def check_noise(subject: Subject, *, tick: Tick = lambda: None) -> list[Finding]:
    """One finding for each phase of the study."""
    return [_check_phase(subject, phase, tick) for _, phase in subject.phases]


def _check_phase(subject: Subject, phase: PhaseTerms, tick: Tick) -> Finding:
    chosen = subject.indices[:WOMEN]
    single = single_steps(subject, phase, chosen, tick)
    whole, recorders = whole_rounds(subject, phase, tick)
    alpha = ALPHA / len(subject.phases)
    found = faults(single, alpha=alpha / 2, what="single steps")
    found += faults(whole, alpha=alpha / 2, what="whole rounds")
    count = sum(rows.shape[1] for rows in single.values())
    found += asked(recorders, numbers=count, phase_steps=steps_of(subject, phase),
                   std=sigma_of(subject, phase) * subject.protocol.privacy.clip)  # fmt: skip
    both = [spread(single), spread(whole)]
    return Finding(
        check="noise", title=f"noise, phase `{phase.name}`", verdict=Verdict.BROKEN if found else Verdict.HELD,
        words="; ".join(found) if found else (
            f"{len(single)} tensors of {count:,} numbers, {REPEATS} single steps and {REPEATS} rounds of "
            f"{steps_of(subject, phase)} steps at two sites: {both[0]:.3f} and {both[1]:.3f} of the promised spread, "
            "Gaussian, zero mean, no two rounds alike"
        ),
        figures={"spread_single": both[0], "spread_rounds": both[1], "tensors": len(single), "numbers": count,
                 "rounds": 2 * REPEATS, "false_alarm": alpha},
    )  # fmt: skip


def sigma_of(subject: Subject, phase: PhaseTerms) -> float:
    """Noise multiplier of a phase."""
    return subject.protocol.privacy.noise_multiplier * phase.noise_factor


def steps_of(subject: Subject, phase: PhaseTerms) -> int:
    """Steps of one round of a phase."""
    return phase.steps_per_round or subject.protocol.training.steps_per_round


def single_steps(subject: Subject, phase: PhaseTerms, chosen: Indices, tick: Tick) -> dict[str, NDArray[np.float64]]:
    """Noise of `REPEATS` single steps over some women, the exact step taken away, in units of sigma C."""
    unit = 1.0 / (sigma_of(subject, phase) * subject.protocol.privacy.clip)
    protocol = bare(subject.protocol, phase, site=subject.site, steps=1, unit=unit)
    women = taken(subject.cohort, chosen)
    every, cache = np.arange(len(women)), subject.cache(women)
    exact = subject.moves(protocol, cohort=women, indices=every, randomness=Silent(), features=cache)
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for number in range(REPEATS):
        randomness = randomness_for(protocol, site=site_of(subject, number), round_number=1 + number // 2)
        moved = subject.moves(protocol, cohort=women, indices=every, randomness=randomness, features=cache)
        for name, values in moved.items():
            rows.setdefault(name, []).append((values - exact[name]).ravel())
        tick()
    return {name: np.stack(values) for name, values in rows.items()}


def whole_rounds(
    subject: Subject, phase: PhaseTerms, tick: Tick
) -> tuple[dict[str, NDArray[np.float64]], list[Recorder]]:
    """Noise of `REPEATS` rounds in the study's own number of steps and sampling rate, in units of sigma C sqrt(T)."""
    steps = steps_of(subject, phase)
    unit = 1.0 / (sigma_of(subject, phase) * subject.protocol.privacy.clip * math.sqrt(steps))
    rate = phase.sample_rate or subject.protocol.training.sample_rate
    protocol = bare(subject.protocol, phase, site=subject.site, steps=steps, unit=unit, sample_rate=rate,
                    augmented=subject.protocol.training.augmentation.enabled)  # fmt: skip
    women = unreadable(min(len(subject.indices), 64), subject.cohort.batch(subject.indices[:1]))
    every, cache = np.arange(len(women)), subject.cache(women)
    rows: dict[str, list[NDArray[np.float64]]] = {}
    recorders = []
    for number in range(REPEATS):
        recorder = Recorder(randomness_for(protocol, site=site_of(subject, number), round_number=1 + number // 2))
        moved = subject.moves(protocol, cohort=women, indices=every, randomness=recorder, features=cache)
        recorders.append(recorder)
        for name, values in moved.items():
            rows.setdefault(name, []).append(values.ravel())
        tick()
    return {name: np.stack(values) for name, values in rows.items()}, recorders


def site_of(subject: Subject, number: int) -> str:
    """Rounds alternate between two sites of the study, where it has two."""
    names = [site.name for site in subject.protocol.federation.sites]
    other = next((name for name in names if name != subject.site), subject.site)
    return subject.site if number % 2 == 0 else other


def spread(rows: Rows) -> float:
    """Root mean square over everything: 1 is as promised."""
    return float(np.sqrt(np.mean(np.concatenate([values.ravel() for values in rows.values()]) ** 2)))


def faults(rows: Rows, *, alpha: float, what: str) -> list[str]:
    """What is wrong with noise that should be standard normal everywhere, in words; empty when nothing is."""
    if not all(np.isfinite(values).all() for values in rows.values()):
        return [f"{what}: numbers that are not finite left the site"]
    level = alpha / (TESTS_A_TENSOR * len(rows) + 1)
    found = []
    for name, values in rows.items():
        if fault := _fault(values, level):
            found.append(f"{what}, {name}: {fault}")
    everything = np.concatenate(list(rows.values()), axis=1)
    largest, limit = correlation(everything, level)
    if largest > limit:
        found.append(f"{what}: two rounds have the same noise (correlation {largest:.3f}, by chance at most "
                     f"{limit:.3f})")  # fmt: skip
    return found


def _fault(values: NDArray[np.float64], level: float) -> str:
    size = values.size
    low, high = (float(stats.chi2.ppf(p, size)) / size for p in (level / 2, 1 - level / 2))
    variance = float(np.mean(values**2))
    if not low <= variance <= high:
        return (f"{math.sqrt(variance):.3f} of the promised spread (by chance {math.sqrt(low):.3f} to "
                f"{math.sqrt(high):.3f})")  # fmt: skip
    if abs(float(values.mean())) > stats.norm.ppf(1 - level / 2) / math.sqrt(size):
        return f"the mean is {float(values.mean()):.3f} and not zero"
    flat = values.ravel()[:KS_MOST]
    if size >= KS_LEAST and stats.kstest(flat, "norm").pvalue < level:
        return "not Gaussian"
    return ""


def correlation(rows_RP: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Greatest correlation of two rounds, and what chance may give (exact for independent Gaussians, `level` in all).

    With fewer than five numbers nothing can be said of correlation; equal rows are then 1 above a limit of 1 - 1e-9.
    """
    rounds, numbers = rows_RP.shape
    pairs = rounds * (rounds - 1) / 2
    if numbers < 5:
        length_R = np.maximum(np.linalg.norm(rows_RP, axis=1), 1e-12)
        cosine_RR = np.abs(rows_RP @ rows_RP.T) / np.outer(length_R, length_R)
        return float(np.max(np.triu(cosine_RR, 1))), 1 - 1e-9 if numbers > 1 else 2.0
    with np.errstate(invalid="ignore"):  # a round without any noise has no correlation, and is found by its spread
        matrix_RR = np.nan_to_num(np.corrcoef(rows_RP))
    largest = float(np.max(np.triu(np.abs(matrix_RR), 1)))
    t = float(stats.t.ppf(1 - level / (2 * pairs), numbers - 2))
    return largest, t / math.sqrt(numbers - 2 + t**2)


def asked(recorders: list[Recorder], *, numbers: int, phase_steps: int, std: float) -> list[str]:
    """What training asked its generator for, against what it should ask: every number, at every step, at sigma C."""
    found = []
    for recorder in recorders:
        counts = [count for count, _ in recorder.noise]
        if sum(counts) != numbers * phase_steps:
            found.append(f"noise was asked for {sum(counts):,} numbers of {numbers * phase_steps:,} that left")
        stds = {value for _, value in recorder.noise}
        if any(not math.isclose(value, std, rel_tol=1e-9) for value in stds):
            found.append(f"noise was asked for with spread {sorted(stds)} instead of {std:g}")
    return sorted(set(found))
