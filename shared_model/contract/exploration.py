"""Which counts an exploration makes, in one order that coordinator and sites share: histograms of contract fields.

Every woman is in exactly one cell of each histogram, whatever is known of her. So one woman more or less changes H
histograms by one count each, and the whole vector by sqrt(H) in L2 norm, which is what noise is measured by. No torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from shared_model.contract.contract import Contract
from shared_model.contract.schema import ClinicalField
from shared_model.errors import ProtocolError

if TYPE_CHECKING:
    from shared_model.cohort import Cohort

MISSING: Final = "missing"
LABEL, FILMS = "label", "films"  # besides the contract's fields: the outcome, and how many of the four views there are
VIEWS: Final = 4


@dataclass(frozen=True)
class Histogram:
    """One histogram of the vector. cells: what each count is of, in words. edges: of a number's bins, in its unit."""

    name: str
    cells: tuple[str, ...]
    edges: tuple[float, ...] = ()
    unit: str = ""


def layout(contract: Contract, *, fields: Sequence[str], bins: int) -> tuple[Histogram, ...]:
    """The histograms in order: label, films, then the fields in the contract's order.

    Args:
        fields: names; empty: all of the contract.
        bins: of a number, equal ones between its public limits.

    Raises:
        ProtocolError: a name that is not in the contract.
    """
    unknown = sorted(set(fields) - {field.name for field in contract.fields})
    if unknown:
        raise ProtocolError("the exploration names fields that are not in the data contract", found=unknown[:8],
                            expected=", ".join(field.name for field in contract.fields))  # fmt: skip
    chosen = [field for field in contract.fields if not fields or field.name in fields]
    films = tuple(f"{count} of {VIEWS}" for count in range(VIEWS + 1))
    return (Histogram(LABEL, ("no cancer", "cancer")), Histogram(FILMS, films),
            *(_of_field(field, bins) for field in chosen))  # fmt: skip


def length(histograms: Sequence[Histogram]) -> int:
    """Counts of all histograms together."""
    return sum(len(histogram.cells) for histogram in histograms)


def sensitivity(histograms: Sequence[Histogram]) -> float:
    """L2 norm by which one woman changes the vector."""
    return math.sqrt(len(histograms))


def count(
    cohort: Cohort, indices: NDArray[np.int64], contract: Contract, histograms: Sequence[Histogram]
) -> NDArray[np.int64]:
    """The vector of counts of the women at `indices`; each histogram adds up to their number.

    Args:
        cohort: prepared by this very contract.
    """
    parts = [np.bincount(cohort.labels[indices].astype(np.int64), minlength=2)]
    views = (cohort.view_index[indices] >= 0).sum(axis=1)
    parts.append(np.bincount(views, minlength=VIEWS + 1))
    table, known = cohort.clinical[indices], cohort.clinical_mask[indices]
    for histogram in histograms[2:]:
        columns = table[:, list(contract.groups[histogram.name])]
        cells = _cells(contract.field(histogram.name), columns, known, histogram)
        parts.append(np.bincount(cells, minlength=len(histogram.cells)))
    return np.concatenate(parts).astype(np.int64)


def documents(
    histograms: Sequence[Histogram], counts: NDArray[np.float64], *, below: float
) -> list[dict[str, Any]]:
    """The vector for people: one document a histogram; a count below `below` is None, as 0 cannot be told from few.

    What is withheld so is withheld from readers of the document; whoever opened the sum has seen it.
    """
    found, start = [], 0
    for histogram in histograms:
        part = counts[start : start + len(histogram.cells)]
        start += len(histogram.cells)
        shown = [float(value) if value >= below else None for value in part]
        found.append({"name": histogram.name, "unit": histogram.unit, "edges": list(histogram.edges),
                      "cells": list(histogram.cells), "counts": shown})  # fmt: skip
    return found


def _of_field(field: ClinicalField, bins: int) -> Histogram:
    if field.kind == "flag":
        return Histogram(field.name, ("no", "yes", MISSING))
    if field.kind == "category":
        return Histogram(field.name, (*field.levels, MISSING))
    assert field.winsor is not None
    low, high = field.winsor
    edges = tuple(float(edge) for edge in np.linspace(low, high, bins + 1))
    words = tuple(f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges))
    return Histogram(field.name, (*words, *field.levels, MISSING), edges, field.unit or "")


def _cells(
    field: ClinicalField, columns: NDArray[np.float32], known: NDArray[np.bool_], histogram: Histogram
) -> NDArray[np.int64]:
    """Which cell each woman is in. columns: [N, width of the field], as `Contract.encode` makes them."""
    missing = ~known | (columns[:, -1] > 0.5)
    last = len(histogram.cells) - 1
    if field.kind == "flag":
        cells = (columns[:, 0] > 0.5).astype(np.int64)
    elif field.kind == "category":
        cells = columns[:, :-1].argmax(axis=1).astype(np.int64)
    else:
        bins = len(histogram.edges) - 1
        value = columns[:, 0].astype(np.float64) * field.scale + field.center
        # Encoded as float32: a value on an edge may come back a hair below it, and belongs above.
        hair = 1e-6 * (histogram.edges[-1] - histogram.edges[0])
        cells = np.clip(np.searchsorted(histogram.edges, value + hair, side="right") - 1, 0, bins - 1).astype(np.int64)
        if field.levels:
            levels = columns[:, 1:-1]
            cells = np.where(levels.max(axis=1) > 0.5, bins + levels.argmax(axis=1), cells)
    return np.where(missing, last, cells)
