"""The comparison in the terminal and as a page: a row a study, some lines each so that it fits; called by the CLI."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.rounds.checkpoint import write_bytes
from simulations.tables import STATUS_STYLES, decimal
from simulations.words import bytes_in_words, seconds_in_words

NONE = "–"
PAGE_WIDTH = 120  # characters
METHODS = {"paired_delong": "Differences: paired DeLong, on the same women.",
           "unpaired": "Unpaired differences: as if on different women, so rather too wide."}  # fmt: skip


def comparison_table(document: Mapping[str, Any]) -> RenderableType:
    """Everything that is printed about a comparison; fits into 80 columns.

    Args:
        document: the content of `comparison.json`.
    """
    jobs = document["jobs"]
    parts: list[RenderableType] = [_results(jobs), *_methods(jobs)]
    if any(job["vendors"] and job["vendors"]["left_out"] is not None for job in jobs):
        parts += [_vendors(jobs), Text("Difference: to the first job on the same women (paired DeLong).", style="dim")]
    if document["common"]:
        parts.insert(0, Text(f"\nAll jobs: {' '.join(document['common'])}", style="dim"))
    return Group(*parts)


def write_page(document: Mapping[str, Any], path: Path) -> None:
    """Write the table as one self-contained HTML page.

    Raises:
        StorageError: it cannot be written.
    """
    console = Console(record=True, file=io.StringIO(), width=PAGE_WIDTH, force_terminal=False)
    console.print(comparison_table(document))
    write_bytes(path, console.export_html(inline_styles=True).encode())


def _results(jobs: list[Mapping[str, Any]]) -> Table:
    table = _table("Comparison", "Test AUC\n(interval)", "Difference to\nthe first job", "Images,\ntable,\ninitial",
                   "Sites,\nworst\nAUC", "Epsilon,\ntime,\nbytes")  # fmt: skip
    for position, job in enumerate(jobs):
        difference = Text("the first") if position == 0 else _difference(job["difference"])
        table.add_row(_name(job), _auc(job["auc"]["fused"]), difference, _models(job), _sites(job), _cost(job))
    return table


def _vendors(jobs: list[Mapping[str, Any]]) -> Table:
    """A line a vendor that no site had, and one for all others."""
    table = _table("Fused AUC on vendors that no site has (E never is at a site), and on the others", "Vendor",
                   "Women\n(cancer)", "AUC\n(interval)", "Difference to\nthe first job")  # fmt: skip
    for position, job in enumerate(jobs):
        for place, group in enumerate(_groups(job)):
            seen = group is job["vendors"]["seen"]
            difference = Text("the first") if position == 0 else _difference(group["difference"])
            table.add_row(
                _name(job) if place == 0 else "", f"{'seen' if seen else 'unseen'} {' '.join(group['vendors'])}",
                _women(group), _auc(group if group["auc"] is not None else None), difference,
            )  # fmt: skip
    return table


def _women(group: Mapping[str, Any]) -> str:
    return NONE if group["n"] is None else f"{group['n']} ({group['positives']})"


def _groups(job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*job["vendors"]["unseen"], job["vendors"]["seen"]] if job["vendors"] else []


def _table(title: str, *heads: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"\n{title}", title_justify="left", show_lines=False)
    table.add_column("Job", min_width=12, overflow="fold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _name(job: Mapping[str, Any]) -> Text:
    """What makes this job different, and how it ended."""
    words = "\n".join(_short(o) for o in job["differs"] or job["overrides"]) or Path(job["run_dir"]).name
    text = Text(f"{words}\n").append(job["status"], style=STATUS_STYLES.get(job["status"], "bold red"))
    if job["status"] != "COMPLETE" and job["rounds_planned"]:
        text.append(f" {job['rounds_completed']} of {job['rounds_planned']} rounds")
    return text.append("\n")


def _short(override: str) -> str:
    """`cohort.shift=none` as `shift=none`: the whole one stands in `comparison.json`."""
    key, sign, value = override.partition("=")
    return f"{key.rpartition('.')[2]}{sign}{value}"


def _auc(model: Mapping[str, Any] | None) -> Text:
    if model is None:
        return Text(NONE)
    return Text.assemble((decimal(model["auc"]), "bold"), f"\n{decimal(model['auc_low'])}-{decimal(model['auc_high'])}")


def _difference(row: Mapping[str, Any] | None) -> Text:
    if row is None:
        return Text(NONE)
    lines = [f"{row['value']:+.3f}"]
    if row["low"] is not None:
        lines.append(f"{row['low']:.3f}, {row['high']:.3f}")
    lines.append("unpaired" if row["method"] == "unpaired" else _p(row["p"]))
    return Text("\n".join(lines))


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _models(job: Mapping[str, Any]) -> Text:
    models = [job["auc"][name] for name in ("image", "clinical", "public_weights")]
    if not any(models):
        return Text(NONE)
    return Text("\n".join(NONE if model is None else decimal(model["auc"]) for model in models))


def _sites(job: Mapping[str, Any]) -> Text:
    if job["sites"] is None:
        return Text(NONE)
    worst = job["worst_site"]
    told = "" if worst is None else f"\n{decimal(worst['auc'])}\n{worst['site']}"
    return Text(f"{job['contributed']} of {job['sites']}{told}")


def _cost(job: Mapping[str, Any]) -> Text:
    if job["seconds"] is None:
        return Text(NONE)
    least = "" if job["epsilon_is_known"] else "at least "
    epsilon = "none" if job["epsilon"] is None else f"{least}{job['epsilon']:.2f}"
    return Text(f"{epsilon}\n{seconds_in_words(job['seconds'])}\n{bytes_in_words(job['bytes'])}")


def _methods(jobs: list[Mapping[str, Any]]) -> list[Text]:
    """How the differences were computed, as far as there are any, and what went wrong with whom."""
    used = {job["difference"]["method"] for job in jobs if job["difference"]}
    notes = [Text(words, style="dim") for method, words in METHODS.items() if method in used]
    return notes + [Text(f"{Path(job['run_dir']).name}: {job['error']}", style="red") for job in jobs if job["error"]]
