"""Joins exams with clinical rows and facts: one row of each woman, as of the day of one exam; called by prepare.

The exam is the latest that has a label. What was known only after its read does not get in, and everything that is not
used is listed with a reason. Everything here is in pseudonyms and shifted dates; nothing does I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from client.ingest.as_of import OLDEST_AGE, cells_as_of
from client.ingest.exam_label import diagnoses_of, label_of
from client.ingest.exam_rows import KnownCells, cells_of_rows, earlier_rows, own_rows, too_old
from client.ingest.join_policy import REASONS, SIMPLE, JoinPolicy
from client.ingest.tables.facts import Content, LeftOut, Row
from shared_model.contract import Contract
from shared_model.contract.schema import number_of, token_of

__all__ = ["REASONS", "SIMPLE", "JoinPolicy", "JoinResult", "Joined", "join"]


@dataclass(frozen=True)
class Joined:
    """One woman's row. exam: day of the exam, "" where there is none. rows: (number of the source from 0, ordinal) of
    the rows that were used; none where facts alone told everything."""

    exam: str
    label: int
    cells: Mapping[str, str]
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class JoinResult:
    """What the join gave.

    women: by pseudonym. refused: pseudonym -> why none of her exams can be used. left_out: rows and files that were not
    used. notes: counts of cells and facts that were `too_late` or `stale`, and of `disagreement` (two sources differ on
    a known cell; the first is believed).
    """

    women: Mapping[str, Joined]
    refused: Mapping[str, str]
    left_out: tuple[LeftOut, ...]
    notes: Mapping[str, int] = field(default_factory=dict)


def join(
    exams: Mapping[str, Collection[str]], contents: Sequence[Content], *, contract: Contract, policy: JoinPolicy,
    labelled: bool = True,
) -> JoinResult:  # fmt: skip
    """One row for each woman who has rows, or facts and an exam.

    Args:
        exams: pseudonym -> days of her exams (YYYYMMDD, "" where the films do not say), shifted; women who have rows
            only need not be there.
        contents: the sources, the most trusted first.
        labelled: False for women who are to be scored: the latest exam is taken and labels are not looked at (-1).
    """
    known = KnownCells(contents, contract)
    rows: dict[str, list[list[Row]]] = {}
    for number, content in enumerate(contents):
        for row in content.rows:
            rows.setdefault(row.pseudonym, [[] for _ in contents])[number].append(row)
    told = [p for content in contents for p in (*content.facts, *content.diagnoses) if p in exams]
    women: dict[str, Joined] = {}
    refused: dict[str, str] = {}
    left_out = [entry for content in contents for entry in content.left_out]
    notes: Counter[str] = Counter()
    for pseudonym in dict.fromkeys([*rows, *told]):
        woman = _Woman(pseudonym, rows.get(pseudonym, [[] for _ in contents]), contents, policy)
        if woman.choose(exams.get(pseudonym, ()), labelled=labelled):
            women[pseudonym] = woman.joined(known, notes)
        else:
            refused[pseudonym] = woman.failure
        left_out += woman.left_out()
    return JoinResult(women, refused, tuple(left_out), dict(notes))


class _Woman:
    """One woman's rows and facts, and what becomes of them.

    exam, label: chosen. failure: why none could be, of her latest exam. reasons, used: by (source, ordinal) of rows.
    """

    def __init__(self, pseudonym: str, rows: list[list[Row]], contents: Sequence[Content], policy: JoinPolicy) -> None:
        self.pseudonym, self.contents, self.policy = pseudonym, contents, policy
        self.reasons: dict[tuple[int, int], str] = {}
        self.used: set[tuple[int, int]] = set()
        self.exam, self.label, self.failure = "", -1, ""
        self._all, self._dated = rows, rows
        self._films: frozenset[str] = frozenset()
        if policy.undated == "refuse":
            self.reasons = {(number, row.ordinal): "bad_date" for number, listed in enumerate(rows) for row in listed
                            if row.bad_date}  # fmt: skip
            self._dated = [[row for row in listed if not row.bad_date] for listed in rows]
        self._diagnoses = [span for content in contents for span in content.diagnoses.get(pseudonym, ())]
        self._diagnoses += [span for listed in self._dated for span in diagnoses_of(listed)]
        self._clear = max((content.clear_until.get(pseudonym, "") for content in contents), default="")

    def choose(self, exams: Collection[str], *, labelled: bool) -> bool:
        """Find the latest exam that has a label; without films the exams that rows name."""
        self._films = frozenset(exams)
        candidates = sorted(self._films or {row.exam for listed in self._dated for row in listed}, reverse=True)
        if self.policy.undated == "refuse":
            candidates = [exam for exam in candidates if exam]
        if not candidates:
            self.failure = "undated_exam" if exams else "undated_row"
            return False
        if not labelled:
            self.exam = candidates[0]
            return True
        for exam in candidates if self.policy.earlier_exams else candidates[:1]:
            label = self._label(exam, latest=exam == candidates[0])
            if isinstance(label, int):
                self.exam, self.label, self.failure = exam, label, ""
                return True
            self.failure = self.failure or label
        self.exam = candidates[0]
        return False

    def _label(self, exam: str, *, latest: bool) -> int | str:
        """The label of one exam, or the reason why it has none; then its rows are set aside with it."""
        own = {number: own_rows(listed, exam, self.policy) for number, listed in enumerate(self._dated)}
        if not latest:  # a label without a date is of the latest exam
            own = {number: [row for row in rows if row.exam] for number, rows in own.items()}
        found = label_of(exam, list(own.values()), diagnoses=self._diagnoses, clear_until=self._clear,
                         policy=self.policy)  # fmt: skip
        if isinstance(found, str):
            for number, rows in own.items():
                for row in rows:
                    self.reasons.setdefault((number, row.ordinal), found)
        return found

    def joined(self, known: KnownCells, notes: Counter[str]) -> Joined:
        """Her row as of the chosen exam: for each field the first source that knows it."""
        cells: dict[str, str] = {}
        for number, content in enumerate(self.contents):
            own = own_rows(self._dated[number], self.exam, self.policy)
            earlier = earlier_rows(self._dated[number], self.exam, own, self.policy)
            mine, used = cells_of_rows(own, earlier, self.exam, known=known, policy=self.policy, notes=notes)
            self.used |= {(number, row.ordinal) for row in used}
            _merge(cells, mine, known, notes)
            if self.exam and self.pseudonym in content.facts:
                told, unused = cells_as_of(content.facts[self.pseudonym], self.exam, complete=content.complete)
                notes.update(unused)
                _merge(cells, told, known, notes)
        if self.policy.cap_age and (age := number_of(token_of(cells.get("age")))) is not None and age > OLDEST_AGE:
            cells["age"] = str(OLDEST_AGE) if known.is_known("age", cells["age"]) else cells["age"]
        return Joined(self.exam, self.label, cells, tuple(sorted(self.used)))

    def left_out(self) -> list[LeftOut]:
        """Every row that was not used, with its reason."""
        return [
            LeftOut(self.contents[number].source, "row", row.ordinal, self.pseudonym, self._reason(number, row))
            for number, listed in enumerate(self._all) for row in listed if (number, row.ordinal) not in self.used
        ]  # fmt: skip

    def _reason(self, number: int, row: Row) -> str:
        if (number, row.ordinal) in self.reasons:
            return self.reasons[number, row.ordinal]
        written = row.exam or row.recorded
        if self.policy.undated == "refuse" and not written:
            return "undated_row"
        if not self.exam:
            return self.failure or "repeated_row"
        if any(row.ordinal == own.ordinal for own in own_rows(self._dated[number], self.exam, self.policy)):
            return self.failure or "repeated_row"
        if written > self.exam:
            return "row_after_exam"
        if row.exam and self._films and row.exam not in self._films and not self.policy.match_days:
            return "row_without_exam"
        if not row.exam and written and too_old(written, self.exam, self.policy):
            return "stale_row"
        return "older_row"


def _merge(cells: dict[str, str], more: Mapping[str, str], known: KnownCells, notes: Counter[str]) -> None:
    """Take what is known here and was not known before; a cell that says nothing keeps its place for the report."""
    for name, cell in more.items():
        if not known.is_known(name, cells.get(name, "")):
            if name not in cells or known.is_known(name, cell):
                cells[name] = cell
        elif known.is_known(name, cell) and token_of(cell) != token_of(cells[name]):
            notes["disagreement"] += 1
