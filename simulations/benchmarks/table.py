"""One measured row and how a table of rows looks; every section of the bench returns rows of this kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

FIGURES: Final = ("Value", "Ratio", "Bound")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    name: what was measured. value: in `unit`; rates are per second.
    ratio: of the value to the one of `against` in the same run, dimensionless; None where nothing is compared.
    at_least, at_most: bound on the ratio, or on the value where there is no ratio; None where none was promised.
    """

    name: str
    value: float
    unit: str
    ratio: float | None = None
    against: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None where there is none."""
        if self.at_least is None and self.at_most is None:
            return None
        judged = self.value if self.ratio is None else self.ratio
        low = float("-inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= judged <= high


def draw(title: str, rows: Sequence[Row]) -> Table:
    """Rows as a table for the terminal, 80 columns or more: words are wrapped there, figures are whole."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    figures = [_figures(row) for row in rows]
    table.add_column("Measured", overflow="fold")
    for place, name in enumerate(FIGURES):
        width = max(len(name), *(len(found[place]) for found in figures), 0)
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    table.add_column("Against", overflow="fold")
    for row, found in zip(rows, figures, strict=True):
        style = {None: "", True: "green", False: "bold red"}[row.met]
        table.add_row(row.name, *found, row.against, style=style)
    return table


def _figures(row: Row) -> tuple[str, str, str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    limits = ((">=", row.at_least), ("<=", row.at_most))
    bounds = [f"{sign} {limit:g}" for sign, limit in limits if limit is not None]
    return f"{row.value:,.4g} {row.unit}", ratio, " ".join(bounds)
