"""How little a cohort can show, in a sentence for the answers of studies and of comparisons.

Nothing is estimated here: the counts and the interval are the report's own, and the sentence says what they mean.
"""

from __future__ import annotations

from server.reporting.data_words import data_words
from server.reporting.limits import FEW_POSITIVES
from shared_model.evaluation.gain import too_few


def how_little(n: int, positives: int, low: float | None, high: float | None, *, kind: str, confidence: float) -> str:
    """The sentence; empty where the women are many and nothing is known against them.

    Args:
        n, positives: held-out women, and those with cancer.
        low, high: bounds of the AUC, in [0, 1]; None where the women do not determine them.
        kind: of the cohort (see `data_words`).

    >>> how_little(26, 6, 0.311, 0.780, kind="", confidence=0.95).partition(":")[0]
    'How little this can show'
    """
    little, fewest = data_words(kind).little, min(positives, n - positives)
    if not little and fewest >= FEW_POSITIVES:
        return ""
    counts = f"How little this can show: there are {positives:,} women with cancer and {n - positives:,} without"
    if low is None or high is None or low == high:
        words = f"{counts}, and the AUC has no interval."
    else:
        words = f"{counts}; the AUC's {100 * confidence:.0f} % interval is {high - low:.2f} wide"
        moved = f", and a single woman can move the AUC by {1 / max(fewest, 1):.2f}"
        words += f"{moved if fewest < FEW_POSITIVES else ''}."
        if low <= 0.5 <= high:
            words += " A model that guesses is within that interval."
    if little:
        return f"{words} {little}"
    if too_few(n, positives) or low is None or high is None or low <= 0.5 <= high:
        return f"{words} It is no evidence for or against the model."
    return f"{words} Read the intervals, not the figures."
