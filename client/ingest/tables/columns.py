"""Which column of a hospital's table means what: column map, code map, unit map and date formats of site.yaml.

Made once from the header line, then applied to every record. Cells are never repeated in a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from client.ingest.tables.dates import Span, check_format, days_after, days_between, parse_date
from client.ingest.tables.facts import Content, Fact, Identities, LeftOut, Row
from shared_model.contract import Contract
from shared_model.contract.schema import column_key, number_of, token_of
from shared_model.errors import ConfigError, ContractError

OWN_COLUMNS = ("patient_id", "label", "exam_date", "label_date", "recorded", "birth_date")
"""What a column can be besides a field of the contract or `recorded.<field>`."""
_DATES = ("exam_date", "label_date", "recorded", "birth_date")
UNITS: dict[tuple[str, str], float] = {
    ("months", "years"): 1 / 12, ("weeks", "years"): 7 / 365.2425, ("days", "years"): 1 / 365.2425,
    ("lb/in2", "kg/m2"): 703.06958, ("g/m2", "kg/m2"): 0.001, ("kg/cm2", "kg/m2"): 10_000.0,
}  # fmt: skip
"""(unit of the table, unit of the contract) -> factor. 1 lb/in2 = 0.45359237 / 0.0254**2 kg/m2."""


def _quoted(value: object) -> object:
    """YAML reads `no` as false and 1 as a number; numbers are meant as written, truth values are not."""
    if isinstance(value, bool):
        raise ValueError("put yes and no in quotes: YAML takes them for true and false")
    return str(value) if isinstance(value, (int, float)) else value


def _text_keys(value: object) -> object:
    return {_quoted(key): cell for key, cell in value.items()} if isinstance(value, dict) else value


Cell = Annotated[str, BeforeValidator(_quoted), Field(max_length=80)]
Column = Annotated[str, Field(min_length=1, max_length=200)]
Codes = Annotated[dict[Cell, Cell], BeforeValidator(_text_keys)]
DateFormat = Annotated[str, AfterValidator(check_format)]


class TableOptions(BaseModel):
    """How a table's columns and cells are to be understood.

    columns: name in the table -> contract field, one of `OWN_COLUMNS`, or `recorded.<field>` (the day on which that one
    cell was written); columns that already have such a name need no entry. codes: field (or label) -> their code ->
    ours. units: field -> the unit that the table has. dates: formats, tried in order. drop: column -> why it may be
    thrown away unread, for columns that the contract refuses and that the hospital cannot leave out of its export.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    columns: dict[Column, str] = {}
    codes: dict[str, Codes] = {}
    units: dict[str, str] = {}
    dates: tuple[DateFormat, ...] = ("%Y-%m-%d",)
    decimal: Literal[".", ","] = "."
    drop: dict[Column, Annotated[str, Field(min_length=8, max_length=400)]] = {}


class Plan:
    """The options applied to one header line.

    Raises:
        ConfigError: the options name what neither table nor contract has.
        ContractError: no patient_id, or two columns for one thing.
        LeakageError: a column tells the outcome of the read.
    """

    def __init__(
        self, header: Sequence[str], options: TableOptions, contract: Contract, *, source: str,
        own: Sequence[str] = OWN_COLUMNS,
    ) -> None:  # fmt: skip
        self.source, self._options, self._width = source, options, len(header)
        self._names = {field.name for field in contract.fields}
        self._check_options(header, contract)
        place, used = self._places(header, own)
        self._place = {target: index for target, index in place.items() if target in OWN_COLUMNS}
        self.fields = tuple(name for name in (field.name for field in contract.fields) if name in place)
        self._field_place = [(name, place[name]) for name in self.fields]
        self._known_place = [
            (target.removeprefix("recorded."), at) for target, at in place.items() if target.startswith("recorded.")
        ]
        self.ignored = self._check_names(header, used, place, contract)
        self._codes = {field: {token_of(key): cell for key, cell in table.items()} for field, table in
                       options.codes.items()}  # fmt: skip
        self._numbers = {field.name for field in contract.fields if field.kind == "number"}
        self._factors = {name: _factor(contract, name, unit, source) for name, unit in options.units.items()}

    @property
    def dropped(self) -> dict[str, str]:
        """Columns that are thrown away unread, and why."""
        return self._options.drop

    @property
    def has_label(self) -> bool:
        """Whether the table has labels."""
        return "label" in self._place

    def _check_options(self, header: Sequence[str], contract: Contract) -> None:
        options, known = self._options, self._names
        absent = [name for name in (*options.columns, *options.drop) if name not in header]
        if absent:
            raise ConfigError(f"{self.source}: the site's file names columns that the table lacks",
                              found=", ".join(sorted(absent)[:10]), expected="names as in the header line",
                              remedy="correct columns or drop of this source in site.yaml" + _one_column(header),
                              )  # fmt: skip
        targets = {target.removeprefix("recorded.") if target.startswith("recorded.") else target
                   for target in options.columns.values()}  # fmt: skip
        asked = (targets - set(OWN_COLUMNS)) | (set(options.codes) - {"label"}) | set(options.units)
        if unknown := sorted(asked - known):
            raise ConfigError(f"{self.source}: the site's file names fields that the contract lacks",
                              found=", ".join(unknown[:10]), expected=", ".join((*OWN_COLUMNS, *sorted(known))),
                              remedy="correct columns, codes or units of this source in site.yaml")  # fmt: skip

    def _places(self, header: Sequence[str], own: Sequence[str]) -> tuple[dict[str, int], set[int]]:
        """(what -> column number, numbers of columns that the site's file names)."""
        place: dict[str, int] = {}
        named: set[int] = set()
        for index, name in enumerate(header):
            if name in self._options.drop:
                named.add(index)
                continue
            target = self._options.columns.get(name)
            if target is not None:
                named.add(index)
            elif name in own or (name.startswith("recorded.") and name.removeprefix("recorded.") in self._names):
                target = name
            elif column_key(name) in self._names:
                target = column_key(name)
            if target is None:
                continue
            if target in place:
                raise ContractError(f"{self.source}: two columns stand for `{target}`", expected="one column for each",
                                    remedy=f"remove or rename one of them in {self.source}, or drop it in site.yaml",
                                    )  # fmt: skip
            place[target] = index
        return place, named

    def _check_names(
        self, header: Sequence[str], named: set[int], place: Mapping[str, int], contract: Contract
    ) -> tuple[str, ...]:
        """Refuse leaks; returns the columns that nobody asked for.

        A mapped column is checked by the hospital's own name too: `columns: {BIRADS: prior_screen_result}` is a leak
        under a good name. What becomes label, key or date is exempt, because it is not shown to the model.
        """
        if "patient_id" not in place:
            raise ContractError(f"{self.source}: no column is the patient id", found=f"{len(header)} columns",
                                expected="a column patient_id, or `columns: {NAME: patient_id}` in site.yaml",
                                remedy="name the column that holds the id that is in the films' PatientID"
                                       + _one_column(header),
                                )  # fmt: skip
        exempt = {at for target, at in place.items() if target in OWN_COLUMNS or target.startswith("recorded.")}
        dropped = {at for at, name in enumerate(header) if name in self._options.drop}
        asked = [name for at, name in enumerate(header) if at not in exempt | dropped]
        unknown = contract.check_columns(["patient_id", "label", *asked], source=self.source)
        mapped = {header[at] for at in named}
        return tuple(name for name in unknown if name not in mapped)

    def row(self, ordinal: int, cells: Sequence[str], identities: Identities) -> tuple[Row, Fact | None] | LeftOut:
        """The record as a row, and the woman's birth date as a fact where there is one."""
        if len(cells) != self._width:
            return LeftOut(self.source, "row", ordinal, "", "damaged_row")
        pseudonym = identities.pseudonym(cells[self._place["patient_id"]].strip())
        if not pseudonym:
            return LeftOut(self.source, "row", ordinal, "", "no_patient_id")
        dates = {name: self._date(cells[self._place[name]], pseudonym, identities)
                 for name in _DATES if name in self._place}  # fmt: skip
        exam, recorded, birth = dates.get("exam_date"), dates.get("recorded"), dates.get("birth_date")
        known = {name: span.last for name, at in self._known_place
                 if (span := self._date(cells[at], pseudonym, identities)) is not None}  # fmt: skip
        row = Row(
            ordinal, pseudonym, exam=exam.last if exam else "",
            bad_date="exam_date" in self._place and exam is None and bool(cells[self._place["exam_date"]].strip()),
            recorded=recorded.last if recorded else "",
            label=self._label(cells[self._place["label"]]) if self.has_label else None,
            label_date=dates.get("label_date"), known=known,
            cells={name: self._cell(name, cells[at]) for name, at in self._field_place},
        )  # fmt: skip
        return row, _birth(birth) if birth else None

    def _date(self, text: str, pseudonym: str, identities: Identities) -> Span | None:
        span = parse_date(text, self._options.dates) if text.strip() else None
        if span is None:
            return None
        return Span(identities.date(pseudonym, span.first), identities.date(pseudonym, span.last))

    def _label(self, text: str) -> str:
        cell = text.strip()
        return self._codes.get("label", {}).get(token_of(cell), cell)

    def _cell(self, name: str, text: str) -> str:
        if name in self._codes and (cell := self._codes[name].get(token_of(text))) is not None:
            return cell
        if name in self._numbers and self._options.decimal == ",":
            text = text.replace(",", ".")
        if name in self._factors and (number := number_of(token_of(text))) is not None:
            return repr(round(number * self._factors[name], 6))
        return text


def _one_column(header: Sequence[str]) -> str:
    return "; the header line is one column: does delimiter fit?" if len(header) == 1 else ""


def _birth(span: Span) -> Fact:
    """A birth date is known at any exam; of a month or a year the middle is taken."""
    return Fact("age", "birth", "", "", days_after(span.first, days_between(span.first, span.last) // 2))


def _factor(contract: Contract, name: str, unit: str, source: str) -> float:
    wanted = contract.field(name).unit
    if unit == wanted:
        return 1.0
    if wanted is None or (unit, wanted) not in UNITS:
        raise ConfigError(f"{source}: no conversion of `{name}` from this unit", found=unit,
                          expected=", ".join([f"{wanted}", *(a for a, b in UNITS if b == wanted)]),
                          remedy="correct units of this source in site.yaml, or convert in the export")  # fmt: skip
    return UNITS[unit, wanted]


def gather(plan: Plan, records: Iterable[Sequence[str]], identities: Identities) -> Content:
    """All records of a table through its plan."""
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    births: dict[str, list[Fact]] = {}
    found = 0
    for found, cells in enumerate(records, start=1):
        result = plan.row(found, cells, identities)
        if isinstance(result, LeftOut):
            left_out.append(result)
            continue
        row, birth = result
        rows.append(row)
        if birth is not None:
            births.setdefault(row.pseudonym, []).append(birth)
    fields = plan.fields if not births or "age" in plan.fields else ("age", *plan.fields)
    return Content(
        plan.source, rows=tuple(rows), facts=births, fields=fields, found=found, left_out=tuple(left_out),
        ignored=plan.ignored, counts=Counter(rows=found),
        warnings=tuple(f"{plan.source}: column `{name}` is dropped unread: {why}"
                       for name, why in plan.dropped.items()),
    )  # fmt: skip
