"""How reports print numbers, and how a page reaches the disk; for the reports of studies and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from shared_model.errors import StorageError

REPORT_NAME = "report.html"
MODELS = {"fused": "Films + table (fused)", "image": "Films alone", "clinical": "Table alone",
          "public": "Initial weights alone"}  # fmt: skip
"""What reports call the models of a study, by their names in its documents."""
PAIRS = {"fused_vs_public": "fused against the initial weights", "fused_vs_image": "fused against films alone",
         "fused_vs_clinical": "fused against the table alone"}  # fmt: skip
LETTERS = {"contributed": "C", "abstained": "A", "late": "L", "refused": "R", "failed": "F", "not_sampled": "·"}


def write_page(run_dir: Path, page: str) -> Path:
    """Write the report into a run directory, all or nothing, and return its path.

    Raises:
        StorageError: the disk refuses.
    """
    path = run_dir / REPORT_NAME
    draft = path.with_name(f".{REPORT_NAME}.partial")
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}", remedy="make room, ask again") from None
    return path


def _number(value: object, digits: int = 3) -> str:
    if not isinstance(value, (int, float)):
        return "–"
    words = f"{value:.{digits}f}"
    return words.removeprefix("-") if float(words) == 0 else words


def _general(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else "–"


def _p_value(value: object) -> str:
    return "–" if not isinstance(value, (int, float)) else "<\u00a00.001" if value < 0.001 else f"{value:.3f}"


def women(count: float | None) -> str:
    """A number of women, or that it is too small to be told (`server.rounds.withheld`)."""
    return "few" if count is None else f"{count:,.0f}"


def _percent(value: object) -> str:
    return f"{100 * value:.0f}\u00a0%" if isinstance(value, (int, float)) else "–"


def _interval(row: Mapping[str, Any], name: str, *, percent: bool = False, digits: int = 3) -> str:
    """`0.87 (0.84 to 0.90)` out of the keys `name`, `name_low`, `name_high`."""
    show: Callable[[object], str] = _percent if percent else partial(_number, digits=digits)
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    words = show(row.get(name))
    # no-break spaces within the brackets: a narrow cell breaks before them
    # and none where they meet: one score for all women, or two models with one ranking, are no measured certainty
    return words if low is None or high is None or low == high else f"{words} ({show(low)}\u00a0to\u00a0{show(high)})"


def _points(row: Mapping[str, Any], name: str) -> str:
    """`-6 (-15 to 3)`: a difference of two shares, in percentage points, out of the keys of :func:`_interval`."""
    keys = ("", "_low", "_high")
    return _interval({f"p{key}": None if row.get(name + key) is None else 100 * row[name + key] for key in keys}, "p",
                     digits=0)  # fmt: skip


INPUTS = {"table": "table alone, no films", "image": "films alone, no table", "both": "films and table"}


def level(row: Mapping[str, Any]) -> str:
    """A subgroup's level in words."""
    return INPUTS.get(row["level"], row["level"]) if row["name"] == "inputs" else str(row["level"])


FILTERS = {
    "number": _number, "general": _general, "p_value": _p_value, "percent": _percent, "interval": _interval,
    "points": _points,
    "level": level, "words": lambda name: str(name).replace("_", " "),
    "pair": lambda name: PAIRS.get(name, str(name).replace("_vs_", " against ").replace("_", " ")),
    "model": lambda name: MODELS.get(name, str(name)),
    "women": women, "letter": lambda outcome: LETTERS.get(outcome, ""),
}  # fmt: skip


def template(name: str, **filters: Callable[..., str]) -> Template:
    """A page of this package, strict and escaped; `filters` are its own beside :data:`FILTERS`."""
    environment = Environment(
        loader=PackageLoader("server.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {**FILTERS, **filters}
    return environment.get_template(name)
