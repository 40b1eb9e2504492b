"""What an update would give away without protection, and what is left of it with: one woman's clinical row.

In a layer that sees the row first, the gradient of a weight is the gradient of its bias times the value that the weight
was multiplied with: whoever sees both divides, and has the row, exactly and without guessing. Clipping scales both
alike and hides nothing. Noise does. A hostile coordinator can ask for steps small enough that she is alone in one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from client.privacy.randomness import Randomness
from client.training.local import randomness_for
from shared_model.protocol import PhaseTerms, Protocol
from simulations.privacy_audit.finding import Finding, Verdict
from simulations.privacy_audit.instruments import Silent, taken
from simulations.privacy_audit.subject import Moves, Subject, bare

WOMEN = 20
NEAR = 0.05      # a value of the row counts as recovered within this (scaled values lie around -3 to 3)
NO_CLIP = 1e6
TOO_MUCH = 0.9   # share of a row that must not come back through the noise, but of one woman in twenty


def check_leak(subject: Subject, *, tick: Callable[[], None] = lambda: None) -> list[Finding]:
    """One finding, about the last phase that learns from the table."""
    phases = [phase for _, phase in subject.phases if phase.objective != "image"]
    chosen = [int(i) for i in subject.indices if bool(subject.cohort.rows([int(i)]).clinical_mask_B[0])][:WOMEN]
    if not phases or not chosen:
        return [Finding(check="leak", title="a clinical row from an update", verdict=Verdict.LEFT_OUT,
                        words="no phase learns from the table")]  # fmt: skip
    phase, women = phases[-1], taken(subject.cohort, chosen)
    rows_NF = women.all.clinical_BF.double().numpy()
    shares: dict[str, list[float]] = {"raw": [], "clipped": [], "sent": []}
    likeness: dict[str, list[float]] = {name: [] for name in shares}
    for who in range(len(chosen)):
        for name, protocol, randomness in _ways(subject, phase):
            moved = subject.moves(protocol, cohort=women, indices=np.array([who]), randomness=randomness)
            guess_F = divide(moved)
            shares[name].append(float(np.mean(np.abs(guess_F - rows_NF[who]) < NEAR)))
            likeness[name].append(_correlation(guess_F, rows_NF[who]))
        tick()
    chance = float(np.mean([np.mean(np.abs(rows_NF[a] - rows_NF[b]) < NEAR) for a in range(len(chosen))
                            for b in range(len(chosen)) if a != b] or [0.0]))  # fmt: skip
    mean = {name: float(np.mean(values)) for name, values in shares.items()}
    broken = float(np.mean(np.asarray(shares["sent"]) > TOO_MUCH)) > 0.05
    return [Finding(
        check="leak", title="a clinical row from an update", verdict=Verdict.BROKEN if broken else Verdict.HELD,
        words=f"from a raw update {mean['raw']:.0%} of the values of a woman's row come back, from a clipped one "
        f"{mean['clipped']:.0%}, from what is sent {mean['sent']:.0%} (another woman's row has {chance:.0%} of hers); "
        f"correlation {', '.join(f'{np.mean(values):.3f}' for values in likeness.values())}",
        figures={**{f"recovered_{name}": value for name, value in mean.items()}, "another_woman": chance,
                 **{f"correlation_{name}": float(np.mean(values)) for name, values in likeness.items()},
                 "women": len(chosen)},
    )]  # fmt: skip


def _ways(subject: Subject, phase: PhaseTerms) -> tuple[tuple[str, Protocol, Randomness], ...]:
    clip = subject.protocol.privacy.clip
    sent = bare(subject.protocol, phase, site=subject.site, steps=1, unit=1.0 / clip)
    raw = sent.model_copy(update={"privacy": sent.privacy.model_copy(update={"clip": NO_CLIP})})
    fresh = randomness_for(sent, site=subject.site, round_number=1)
    return ("raw", raw, Silent()), ("clipped", sent, Silent()), ("sent", sent, fresh)


def divide(moved: Moves) -> NDArray[np.float64]:
    """The row [F] as weight over bias of the straight way from the table, which every phase that knows it trains."""
    weight_F, bias = moved["clinical_direct.weight"][0], float(moved["clinical_direct.bias"][0])
    return np.asarray(weight_F / bias, dtype=np.float64) if bias else np.zeros(len(weight_F))


def _correlation(guess_F: NDArray[np.float64], row_F: NDArray[np.float64]) -> float:
    if guess_F.std() == 0 or row_F.std() == 0:
        return 0.0
    return float(np.corrcoef(guess_F, row_F)[0, 1])
