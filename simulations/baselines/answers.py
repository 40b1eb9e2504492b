"""The comparison of several populations as tables: rows of words for the terminal and the same rows as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.baselines.comparison import kept_share, mean_and_spread, together
from simulations.baselines.jobs import BASELINES, FEDERATED

WIDEST = 5  # arms side by side in a terminal of 80 columns
Document = Mapping[str, Any]
Row = tuple[str, ...]

NAMES = {
    FEDERATED: "federated, images + clinical", "pooled": "pooled, images + clinical",
    "image_only": "federated, images only (a model of its own)",
    "clinical_only": "federated, clinical only (a model of its own)",
    "logistic": "logistic regression on the pooled table", "public_only": "initial weights, no hospital data",
    "local": "local, images + clinical (mean of the sites)",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One table: a title, the heads of its columns, and its rows."""

    title: str
    heads: Row
    rows: tuple[Row, ...]


def tables(documents: Sequence[Document]) -> list[Answers]:
    """All tables over the populations' documents (see `comparison.compare`), at least one."""
    return [_aucs(documents), _questions(documents), *_sites(documents)]


def markdown(answers: Answers) -> str:
    """A table as Markdown."""
    lines = [f"**{answers.title}**", "", *("| " + " | ".join(row) + " |" for row in (answers.heads, *answers.rows))]
    lines.insert(3, "|" + "---|" * len(answers.heads))
    return "\n".join(lines) + "\n"


def _aucs(documents: Sequence[Document]) -> Answers:
    arms = list(documents[0]["arms"])
    rows = []
    for baseline in ("public_only", "logistic", "clinical_only", "image_only", "local", "pooled", FEDERATED):
        cells = [_cell([_auc(d, arm, baseline) for d in documents]) for arm in arms]
        if any(cell != "" for cell in cells):
            rows.append((NAMES[baseline], *cells))
    women = ", ".join(f"{d['women']['n']:,}" for d in documents)
    seeds = ", ".join(str(d["seed"]) for d in documents)
    title = f"Held-out test AUC, mean (SD) over {len(documents)} populations (seeds {seeds}; {women} women)"
    if len(documents) == 1:
        title = f"Held-out test AUC (one population, seed {seeds}; {women} women)"
    if len(arms) > WIDEST:  # a comparison of strategies, say: one line each
        turned = tuple((arm, *(row[place + 1] for row in rows)) for place, arm in enumerate(arms))
        return Answers(title=title, heads=("arm", *(row[0] for row in rows)), rows=turned)
    return Answers(title=title, heads=("model", *arms), rows=tuple(rows))


def _auc(document: Document, arm: str, baseline: str) -> float | None:
    jobs = document["jobs"]
    if baseline == "local":
        found = mean_and_spread([row["auc"] for name, row in jobs.items() if name.startswith(f"{arm}/local/")])
        return found[0] if found else None
    return jobs[f"{arm}/{baseline}"]["auc"] if f"{arm}/{baseline}" in jobs else None


def _cell(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean and standard deviation over populations; of one population there is no deviation to state."""
    found = mean_and_spread(values)
    if found is None:
        return ""
    spread = f" ({found[1]:.{digits}f})" if sum(value is not None for value in values) > 1 else ""
    return f"{found[0]:.{digits}f}{spread}"


def _questions(documents: Sequence[Document]) -> Answers:
    heads = ("question", "mean (SD)", "least", "greatest", "all together (95 % interval)", "greatest p",
             "populations clear of zero")  # fmt: skip
    title, rows = "What the differences say (AUC, paired DeLong)", tuple(_question_rows(documents))
    if len(documents) == 1:  # nothing to average, no least and no greatest
        return Answers(title=title, heads=("question", "difference (95 % interval)", "p"),
                       rows=tuple((row[0], row[4] or row[1], row[5]) for row in rows))  # fmt: skip
    return Answers(title=title, heads=heads, rows=rows)


def _question_rows(documents: Sequence[Document]) -> Iterator[Row]:
    arms = list(documents[0]["arms"])
    for arm in arms:
        for name in BASELINES:
            found = [d["arms"][arm].get(f"federated_minus_{name}") for d in documents if name != "local"]
            gaps = [gap for gap in found if gap]
            if gaps:
                yield _row(f"{arm}: federated minus {name}", [g["difference"] for g in gaps], gaps)
        excess = [_above_binormal(d, arm) for d in documents]
        if any(value is not None for value in excess):
            yield _row(f"{arm}: federated minus the binormal prediction", excess)
    plain = arms[0]
    for arm in arms[1:]:
        cost = [_difference(d, plain, arm) for d in documents]
        yield _row(f"{plain} minus {arm}, federated", cost)
        kept = [_kept(d, plain, arm) for d in documents]
        if any(value is not None for value in kept):
            yield _row(f"{arm}: share kept of what hospitals added over the initial weights", kept)


def _row(question: str, values: Sequence[float | None], gaps: Sequence[Document] = ()) -> Row:
    known = [value for value in values if value is not None]
    clear = sum(1 for gap in gaps if gap["low"] is not None and (gap["low"] > 0 or gap["high"] < 0))
    worst = max((gap["p"] for gap in gaps if gap["p"] is not None), default=None)
    said = _interval(gaps), "" if worst is None else f"{worst:.1g}", f"{clear} of {len(gaps)}" if gaps else ""
    if not known:
        return question, "", "", "", *said
    return question, _cell(known), f"{min(known):.3f}", f"{max(known):.3f}", *said


def _interval(gaps: Sequence[Document]) -> str:
    found = together(gaps)
    return "" if found is None else f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})"


def _above_binormal(document: Document, arm: str) -> float | None:
    predicted, found = document["arms"][arm].get("binormal"), _auc(document, arm, FEDERATED)
    return None if predicted is None or found is None else found - predicted


def _difference(document: Document, one: str, two: str) -> float | None:
    first, second = (_auc(document, arm, FEDERATED) for arm in (one, two))
    return None if first is None or second is None else first - second


def _kept(document: Document, plain: str, arm: str) -> float | None:
    """Only for arms that begin with the first arm's weights: the others added to something else."""
    if document["jobs"][f"{arm}/{FEDERATED}"]["initial"] != document["jobs"][f"{plain}/{FEDERATED}"]["initial"]:
        return None
    public = _auc(document, plain, "public_only")
    first, second = _auc(document, plain, FEDERATED), _auc(document, arm, FEDERATED)
    return None if public is None or first is None or second is None else kept_share(second, first, public)


def _sites(documents: Sequence[Document]) -> Iterator[Answers]:
    """By arm: what each site gained over what it has alone, on its own test women."""
    for arm in documents[0]["arms"]:
        gains = [d["arms"][arm].get("federated_minus_local", {}) for d in documents]
        rows = []
        for site in sorted({site for gain in gains for site in gain}):
            own = [gain[site] for gain in gains if site in gain]
            clear = sum(1 for gap in own if gap["low"] is not None and gap["low"] > 0)
            values = [gap["difference"] for gap in own]
            rows.append((site, _cell(values), f"{min(values):.3f}", _interval(own), f"{clear} of {len(own)}"))
        title = f"{arm}: federated against local, on the site's own test women"
        if rows and len(documents) == 1:
            yield Answers(title=title, heads=("site", "gain in AUC over local (95 % interval)"),
                          rows=tuple((row[0], row[3] or f"{row[1]} (too few women for an interval)") for row in rows)
                          )  # fmt: skip
        elif rows:
            heads = ("site", "gain in AUC over local, mean (SD)", "least", "all together (95 % interval)",
                     "populations above zero")  # fmt: skip
            yield Answers(title=title, heads=heads, rows=tuple(rows))
