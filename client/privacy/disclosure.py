"""Disclosure control of reports: counts of few women are withheld. It is no differential privacy and has no epsilon.

Called where a report is made, and again by the egress gate, which lets a report go only when it would change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared_model.evaluation.subgroups import row_size

Document = dict[str, Any]


def disclosed(report: Mapping[str, Any], *, below: int, totals: bool) -> Document:
    """A report as it may leave.

    Rows of `subgroups` with fewer women than `below` say only that they exist; where one row of an attribute alone is
    withheld, so is the least of the others, for it could be worked out from the total. Of a `lesion_type` the cancers
    are counted: all women without cancer are in each of its rows.

    Args:
        report: a document of `shared_model.evaluation.report`.
        below: least number of women that a count may have.
        totals: whether the whole is withheld (an empty document) when positives or negatives are fewer than `below`,
            and `evidence` in any case.
            A site's own report: yes. The evaluator's women are the coordinator's, who must choose a model by them: no.
    """
    document = dict(report)
    if totals and {"n", "positives"} <= set(document):
        positives, negatives = int(document["positives"]), int(document["n"]) - int(document["positives"])
        if min(positives, negatives) < below:
            return {}
    if totals:
        document.pop("evidence", None)  # bands and curves of few women, which nobody asks a hospital for
    if "subgroups" in document:
        document["subgroups"] = _rows(document["subgroups"], below)
    return document


def _rows(rows: Sequence[Mapping[str, Any]], below: int) -> list[Document]:
    shown = [_cell(row) if row_size(row) < below else dict(row) for row in rows]
    for name in {str(row["name"]) for row in rows}:
        group = [index for index, row in enumerate(shown) if row["name"] == name]
        hidden = [index for index in group if shown[index].get("suppressed")]
        open_rows = [index for index in group if index not in hidden]
        if len(hidden) == 1 and open_rows:
            least = min(open_rows, key=lambda index: (row_size(shown[index]), index))
            shown[least] = _cell(shown[least])
    return shown


def _cell(row: Mapping[str, Any]) -> Document:
    return {"name": row["name"], "level": row["level"], "suppressed": True}
