"""The state of a prepared cohort in counts that may be shown: small ones are hidden and cannot be worked out.

Made from the cohort and its preparation report; shown by `mammofed site data` (terminal and page), and compared with
the summary of the next import for drift. It holds published numbers only, so whatever is made of it may be shown too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from client.ingest.report import PreparationReport
from client.ingest.suppression import Sum, hidden_counts
from shared_model.cohort import VIEWS, Cohort
from shared_model.contract import Contract
from shared_model.contract.schema import ClinicalField
from shared_model.errors import CohortError

AGE_BANDS = (40, 50, 60, 70, 80)  # years, lower edges of all but the first band
_MAX_SUMMARY_BYTES = 1 << 20


@dataclass(frozen=True)
class Shown:
    """One table: labels and counts that add up to `total`; None is a hidden count."""

    name: str
    title: str
    total: int | None
    rows: tuple[tuple[str, int | None], ...]

    def share(self, label: str) -> float | None:
        """A row's part of the total, None where either is hidden."""
        count = dict(self.rows).get(label)
        return None if count is None or not self.total else count / self.total


@dataclass(frozen=True)
class Summary:
    """What a person may see of a cohort. tables: in the order of the page. warnings: in words."""

    site: str
    threshold: int
    content_sha256: str
    contract_sha256: str
    pipeline_sha256: str
    tables: tuple[Shown, ...]
    warnings: tuple[str, ...] = ()

    def table(self, name: str) -> Shown | None:
        """The table of that name."""
        return next((table for table in self.tables if table.name == name), None)

    @property
    def patients(self) -> int | None:
        """Prepared women, None where they are fewer than the threshold."""
        table = self.table("label")
        return None if table is None else table.total

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Summary:
        """Back from :meth:`to_json`.

        Raises:
            CohortError: the text is no summary.
        """
        try:
            if len(text) > _MAX_SUMMARY_BYTES:
                raise ValueError("too long")
            values = json.loads(text)
            tables = tuple(
                Shown(str(t["name"]), str(t["title"]), _count(t["total"]),
                      tuple((str(label), _count(count)) for label, count in t["rows"]))
                for t in values.pop("tables")
            )  # fmt: skip
            names = ("site", "content_sha256", "contract_sha256", "pipeline_sha256")
            return cls(**{name: str(values[name]) for name in names}, threshold=int(values["threshold"]),
                       tables=tables, warnings=tuple(map(str, values["warnings"])))  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CohortError("the summary of the last import cannot be read", expected="what an import has written",
                              remedy="remove the file; the next import writes it again") from None  # fmt: skip


def _count(value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError("no count")
    return value


@dataclass(frozen=True)
class _Table:
    """A table before anything is hidden: names of counts, labels to show."""

    name: str
    title: str
    total: str
    rows: tuple[tuple[str, str], ...]  # (label, name of the count)


def summarise(
    cohort: Cohort, report: PreparationReport, *, contract: Contract, threshold: int, warnings: Sequence[str] = ()
) -> Summary:
    """The cohort's state.

    Args:
        threshold: least count besides 0 that may be shown, the site's choice.
        warnings: further sentences for the page, free of counts below the threshold.

    Raises:
        CohortError: the cohort is of another contract.
    """
    cohort.require(contract_sha256=contract.sha256, pipeline_sha256=cohort.pipeline_sha256)
    counts: dict[str, int] = {}
    tables = [
        *_women(cohort, counts), _vendors(cohort, counts, threshold), _ages(cohort, counts),
        *(_field(cohort, contract, field, counts) for field in contract.fields), *_accounts(report, counts),
    ]  # fmt: skip
    sums = [Sum(table.total, tuple(name for _, name in table.rows)) for table in tables]
    sums.append(Sum("films.prepared", tuple(f"view.{view}" for view in VIEWS)))
    hidden = hidden_counts(counts, sums, threshold=threshold)

    def shown(name: str) -> int | None:
        return None if name in hidden else counts[name]

    published = tuple(
        Shown(t.name, t.title, shown(t.total), tuple((label, shown(name)) for label, name in t.rows)) for t in tables
    )
    return Summary(
        cohort.site, threshold, cohort.content_sha256, cohort.contract_sha256, cohort.pipeline_sha256, published,
        tuple(soften(text, threshold) for text in report.warnings) + tuple(warnings),
    )  # fmt: skip


def soften(text: str, threshold: int) -> str:
    """A sentence with its small counts replaced by words.

    >>> soften("3 films were enlarged", 10)
    'fewer than 10 films were enlarged'
    """
    return re.sub(r"(?<![\w.,])\d+(?![\w.]|,\d)",
                  lambda m: f"fewer than {threshold}" if 0 < int(m[0]) < threshold else m[0], text)  # fmt: skip


def _women(cohort: Cohort, counts: dict[str, int]) -> list[_Table]:
    n = len(cohort)
    views_N = (cohort.view_index >= 0).sum(axis=1)
    both = int(((views_N > 0) & cohort.clinical_mask).sum())
    no_film = int((views_N == 0).sum())
    positives = int(cohort.labels.sum())
    complete = int((views_N == len(VIEWS)).sum())
    counts |= {
        "women": n, "label.1": positives, "label.0": n - positives, "inputs.both": both, "no film": no_film,
        "inputs.image": n - both - no_film, "views.all": complete, "views.some": n - complete - no_film,
    }  # fmt: skip
    tables = [
        _Table("label", "Women", "women", (("with cancer", "label.1"), ("without", "label.0"))),
        _Table("inputs", "What there is of a woman", "women", (
            ("films and a table row", "inputs.both"), ("films only", "inputs.image"), ("table row only", "no film"),
        )),
        _Table("views", "Views of a woman", "women", (
            ("all four", "views.all"), ("one to three", "views.some"), ("none", "no film"),
        )),
    ]  # fmt: skip
    for column, view in enumerate(VIEWS):
        there = int((cohort.view_index[:, column] >= 0).sum())
        counts |= {f"view.{view}": there, f"no.{view}": n - there}
        title = f"View {view.replace('_', ' ')}"
        tables.append(_Table(f"view.{view}", title, "women", (("there", f"view.{view}"), ("missing", f"no.{view}"))))
    return tables


def _vendors(cohort: Cohort, counts: dict[str, int], threshold: int) -> _Table:
    """By maker. A maker of few women is not named: the header's text may be anything, and few share it."""
    named = _column(cohort, "vendor")
    found = Counter(str(v) for v, index in zip(named, cohort.view_index, strict=True) if v and (index >= 0).any())
    kept = sorted(vendor for vendor, count in found.items() if count >= threshold)
    for vendor in kept:
        counts[f"vendor.{vendor}"] = found[vendor]
    counts["vendors.other"] = counts["women"] - counts["no film"] - sum(found[vendor] for vendor in kept)
    rows = [(vendor, f"vendor.{vendor}") for vendor in kept]
    return _Table("vendor", "Maker of the machine", "women",
                  (*rows, ("other or not known", "vendors.other"), ("no film", "no film")))  # fmt: skip


def _ages(cohort: Cohort, counts: dict[str, int]) -> _Table:
    ages = _column(cohort, "age_years")
    known = [float(age) for age in ages if isinstance(age, (int, float))]
    labels = _band_labels(AGE_BANDS)
    found = np.bincount(np.digitize(known, AGE_BANDS), minlength=len(labels))
    counts |= {f"age.{label}": int(count) for label, count in zip(labels, found, strict=True)}
    counts["age.not known"] = len(ages) - len(known)
    return _Table("ages", "Age at the exam, years", "women",
                  tuple((label, f"age.{label}") for label in (*labels, "not known")))  # fmt: skip


def _column(cohort: Cohort, name: str) -> Sequence[object]:
    attributes = cohort.attributes
    values = attributes[name].tolist() if name in attributes else [None] * len(cohort)
    return [None if value is None or value != value else value for value in values]


def _field(cohort: Cohort, contract: Contract, field: ClinicalField, counts: dict[str, int]) -> _Table:
    """One field by level or public band, with the women of whom it is not known."""
    labels, levels_N = levels_of(cohort, contract, field)
    if field.name == "age":  # its bands stand in `ages`; both together would tell them apart
        labels, levels_N = ("known",), np.minimum(levels_N, 0)
    title = f"{field.name}: {field.description.split('.')[0]}"
    for index, label in enumerate(labels):
        counts[f"{field.name}.{label}"] = int((levels_N == index).sum())
    counts[f"{field.name}.missing"] = int((levels_N < 0).sum())
    return _Table(f"field.{field.name}", title, "women",
                  tuple((label, f"{field.name}.{label}") for label in (*labels, "missing")))  # fmt: skip


def levels_of(cohort: Cohort, contract: Contract, field: ClinicalField) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """(labels, index of each woman's label or -1 where the field is not known), int64 [N]."""
    columns = contract.groups[field.name]
    part_NF = cohort.clinical[:, list(columns)]
    known_N = cohort.clinical_mask & (part_NF[:, -1] == 0.0)
    if field.kind == "flag":
        return ("no", "yes"), np.where(known_N, (part_NF[:, 0] == 1.0).astype(np.int64), -1)
    if field.kind == "category":
        return field.levels, np.where(known_N, part_NF[:, :-1].argmax(axis=1), -1)
    edges = bands_of(field)
    whole = field.whole and edges == tuple(range(1, len(edges) + 1))
    labels = (*map(str, range(len(edges))), f"{len(edges)} or more") if whole else _band_labels(edges)
    value_N = part_NF[:, 0].astype(np.float64) * field.scale + field.center
    index_N = np.digitize(np.round(value_N, 4), edges)
    for number in range(len(field.levels)):
        index_N = np.where(part_NF[:, 1 + number] == 1.0, len(labels) + number, index_N)
    return (*labels, *field.levels), np.where(known_N, index_N, -1)


def bands_of(field: ClinicalField) -> tuple[float, ...]:
    """Public edges of a number's bands: whole numbers where there are few, else half and one and a half scales around
    the center, within its limits."""
    assert field.winsor is not None
    low, high = field.winsor
    if field.whole and high - low <= 6:
        return tuple(range(int(low) + 1, int(high) + 1))
    edges = [round(field.center + k * field.scale, 6) for k in (-1.5, -0.5, 0.5, 1.5)]
    return tuple(edge for edge in edges if low < edge < high)


def _band_labels(edges: Sequence[float]) -> tuple[str, ...]:
    inner = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    return (f"below {edges[0]:g}", *inner, f"{edges[-1]:g} and above")


def _accounts(report: PreparationReport, counts: dict[str, int]) -> list[_Table]:
    """Found = prepared + set aside by reason, for films, rows and women."""
    tables = []
    for kind, title in (("film", "Films"), ("row", "Table rows"), ("patient", "Women found")):
        found, prepared = _numbers(report, kind)
        reasons = {key.split(".", 1)[1]: n for key, n in report.reasons.items() if key.startswith(f"{kind}.")}
        prepared_name = "women" if kind == "patient" else f"{kind}s.prepared"
        counts |= {f"{kind}s.found": found, prepared_name: prepared}
        counts |= {f"{kind}.{reason}": n for reason, n in reasons.items()}
        rows = [("prepared", prepared_name), *((reason, f"{kind}.{reason}") for reason in sorted(reasons))]
        tables.append(_Table(f"{kind}s", f"{title}: prepared, and set aside by reason", f"{kind}s.found", tuple(rows)))
    return tables


def _numbers(report: PreparationReport, kind: str) -> tuple[int, int]:
    values: Mapping[str, tuple[int, int]] = {
        "film": (report.films, report.films_prepared), "row": (report.rows, report.rows_prepared),
        "patient": (report.patients, report.patients_prepared),
    }  # fmt: skip
    return values[kind]
