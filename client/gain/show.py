"""`gain` documents in words and as a table; for `site gain`. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shared_model.errors import ConfigError, StorageError
from shared_model.evaluation.gain import too_few

NAMES = {"public": "public weights, films alone", "local": "own model, trained here without noise",
         "local_noised": "own model, under the study's privacy", "shared": "shared model"}  # fmt: skip
ORDER = ("public", "local", "local_noised", "shared")


def sites_of_evidence(path: Path, *, site: str | None) -> list[dict[str, Any]]:
    """The hospitals' rows in the `evidence.json` of a comparison, by arm, all populations together.

    Raises:
        StorageError: not readable. ConfigError: no such site.
    """
    try:
        document = json.loads(path.read_bytes())
        rows = [{"site": name, "study": f"{document['study']}, arm {arm}", **row}
                for arm, found in document["arms"].items() for name, row in found["sites"].items()
                if site in (None, name)]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} cannot be read: {type(error).__name__}",
                           remedy="make it again: `mammofed simulate resume RUN_DIR`") from None  # fmt: skip
    if not rows:
        raise ConfigError("the comparison has no such site", found=site)
    return rows


def sentence(row: Mapping[str, Any]) -> str:
    """What the site gained over its own model, or over public weights, and whether the interval shows it."""
    pairs = row["pairs"]
    name = next((n for n in ("shared_vs_local", "shared_vs_public") if n in pairs), None)
    whose = "its own model" if name == "shared_vs_local" else "public weights"
    gap = _gap(pairs[name]) if name else None
    women = f"{row['n']:,} own test women, {row['positives']:,} with cancer"
    if gap is None or gap[1] is None or gap[2] is None or too_few(row["n"], row["positives"]):
        return f"{row['site']}: {women}: too few to say what it gained."
    word = "gained" if gap[1] > 0 else "lost" if gap[2] < 0 else "is not shown to have gained"
    return f"{row['site']} {word}: {gap[0]:+.3f} in AUC over {whose} ({gap[1]:+.3f} to {gap[2]:+.3f}; {women})."


def show(console: Console, row: Mapping[str, Any]) -> None:
    """Print one site's document."""
    console.print(sentence(row), markup=False, highlight=False)
    table = Table(title=f"{row['study']}: AUC on {row['site']}'s own test women", title_justify="left", box=None)
    for head in ("model", "AUC", "shared model minus this one", "p"):
        table.add_column(head, justify="left" if head == "model" else "right")
    for name in (n for n in ORDER if n in row["models"]):
        pair = row["pairs"].get(f"shared_vs_{name}")
        gap = None if pair is None else _gap(pair)
        table.add_row(NAMES[name], _three(row["models"][name], "auc"), "" if gap is None else _words(*gap),
                      "" if pair is None or pair.get("p") is None else f"{pair['p']:.2g}")  # fmt: skip
    console.print(table)
    transfer, fit = row["transfer"], row["recalibration"]
    if transfer.get("sensitivity") is not None:
        console.print(
            f"The coordinator's threshold ({_aim(transfer)}) here: sensitivity "
            f"{_three(transfer, 'sensitivity')}, specificity {_three(transfer, 'specificity')}.", highlight=False,
        )  # fmt: skip
    if fit.get("before") and fit.get("after"):
        words = [f"{when}: slope {_short(fit[when]['slope'])}, intercept {_short(fit[when]['intercept'])}, error "
                 f"{_short(fit[when]['adaptive_ece'])}" for when in ("before", "after")]  # fmt: skip
        console.print(f"Calibration before and after a line fitted on other own women: {'; '.join(words)}.",
                      highlight=False)  # fmt: skip


def _aim(transfer: Mapping[str, Any]) -> str:
    return "given" if transfer["wanted"] is None else f"chosen for {transfer['wanted']:.0%} specificity"


def _gap(pair: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    keys = ("difference", "difference_low", "difference_high") if "difference_low" in pair else (
        "difference", "low", "high")  # fmt: skip
    return pair[keys[0]], pair[keys[1]], pair[keys[2]]


def _words(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:+.3f}" if low is None or high is None else f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def _three(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
