"""Which rows of a table tell of an exam, and what they and a woman's facts say of it; called by joining. No I/O."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import pandas as pd

from client.ingest.join_policy import JoinPolicy
from client.ingest.tables.dates import days_between
from client.ingest.tables.facts import Content, Row
from shared_model.contract import Contract

EXAM_BOUND = frozenset({"age", "palpable_lump", "nipple_discharge", "years_since_screen", "prior_screen_result"})
"""Fields that a row says of its own exam only: they are not taken from an earlier row."""


def own_rows(rows: Sequence[Row], exam: str, policy: JoinPolicy) -> list[Row]:
    """Rows of a source that are of this exam, in their order; undated ones where the source names no exam at all."""
    if not exam:  # films without a date belong with the latest row
        latest = max((row.exam for row in rows), default="")
        return [row for row in rows if row.exam == latest]
    dated = [row for row in rows if row.exam]
    if not dated and policy.undated == "accept":
        return [row for row in rows if not row.recorded]
    if not policy.match_days:
        return [row for row in dated if row.exam == exam]
    near = [(abs(days_between(row.exam, exam)), row) for row in dated]
    closest = min((days for days, _ in near), default=0)
    return [row for days, row in near if days == closest <= policy.match_days]


def earlier_rows(rows: Sequence[Row], exam: str, own: Sequence[Row], policy: JoinPolicy) -> list[Row]:
    """Rows of a source that were written before the exam and are of no later one, the newest first."""
    if not exam or not policy.max_age_of_row_days:
        return []
    mine = {row.ordinal for row in own}
    dated = [(row.recorded or row.exam, row.ordinal, row) for row in rows
             if row.ordinal not in mine and row.exam < exam]  # fmt: skip
    fitting = [entry for entry in dated if entry[0] and entry[0] <= exam and not too_old(entry[0], exam, policy)]
    return [row for _, _, row in sorted(fitting, key=lambda entry: entry[:2], reverse=True)]


def too_old(written: str, exam: str, policy: JoinPolicy) -> bool:
    """Whether what was written that day tells nothing of the exam any more."""
    return days_between(written, exam) > policy.max_age_of_row_days


class KnownCells:
    """Which cells the contract takes for known; each distinct cell is read once."""

    def __init__(self, contents: Sequence[Content], contract: Contract) -> None:
        self._contract = contract
        self._known: dict[tuple[str, str], bool] = {}
        distinct: dict[str, set[str]] = defaultdict(set)
        for content in contents:
            for row in content.rows:
                for name, cell in row.cells.items():
                    distinct[name].add(cell)
            for facts in content.facts.values():
                for fact in facts:
                    distinct[fact.field].add(fact.cell)
        for name, cells in distinct.items():
            self._read(name, sorted(cells))

    def is_known(self, name: str, cell: str) -> bool:
        """Whether the cell is a value or a level, and no code for "not known", impossible or unreadable one."""
        if (name, cell) not in self._known:
            self._read(name, [cell])
        return self._known[name, cell]

    def _read(self, name: str, cells: Sequence[str]) -> None:
        frame = pd.DataFrame({name: pd.Series(list(cells), dtype=object)})
        present = self._contract.encode(frame, source="cells").present
        self._known.update({(name, cell): bool(known) for cell, known in zip(cells, present, strict=True)})


def cells_of_rows(
    own: Sequence[Row], earlier: Iterable[Row], exam: str, *, known: KnownCells, policy: JoinPolicy, notes: Counter[str]
) -> tuple[dict[str, str], list[Row]]:
    """(contract field -> cell, rows that gave one or the label) of one source as of the exam.

    Of several rows of the exam the last stands; what it lacks is taken from earlier ones, the newest first.
    """
    cells: dict[str, str] = {}
    used = list(own[-1:])
    for row in used:
        late = bool(exam and row.recorded > exam)
        for name, cell in row.cells.items():
            written = row.known.get(name, "")
            if late or (exam and written > exam):
                notes["too_late"] += known.is_known(name, cell)
            elif exam and written and too_old(written, exam, policy):
                notes["stale"] += known.is_known(name, cell)
            else:
                cells[name] = cell
    for row in earlier:
        gave = False
        for name, cell in row.cells.items():
            written = row.known.get(name, "")
            unfit = name in EXAM_BOUND or written > exam or (written and too_old(written, exam, policy))
            if not unfit and known.is_known(name, cell) and not known.is_known(name, cells.get(name, "")):
                cells[name], gave = cell, True
        used += [row] if gave else []
    return cells, used
