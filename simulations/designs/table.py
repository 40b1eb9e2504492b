"""A design in the terminal: what was declared beforehand, and at its end the answer, a table, what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from server.reporting.data_words import data_words
from server.reporting.design_answer import NAMES, headline, next_steps, run_words
from simulations.designs.plans import ALL_SITES
from simulations.designs.roll import Roll
from simulations.tables import decimal, percent_of, share


def told_beforehand(roll: Roll) -> list[str]:
    """What a person reads before the first training: how many there are, and what they will cost a woman."""
    tested = {name for run in roll.runs if run.name != ALL_SITES for names in run.test.values() for name in names}
    plural = "s" if len(roll.runs) > 1 else ""
    lines = [f"{NAMES[roll.kind]}: {len(roll.runs)} training{plural}; {len(tested):,} women tested"]
    price = roll.price
    if price.granted is not None and price.together is not None and price.one is not None:
        lines.append(
            f"All releases add up: a woman trains in up to {max(price.releases.values())}; epsilon "
            f"{max(price.together.values()):.2f} in all of {price.granted:g} granted (delta {price.delta:g}), "
            f"{price.one:.2f} each; the ledgers go on from run to run"
        )
    return lines


def tell(document: Mapping[str, Any], *, run_dir: Path, report: Path, console: Console | None = None) -> None:
    """Print everything that a design ends with; fits into 80 columns."""
    out = console or Console()
    for sentence in headline(document):
        out.print(sentence, markup=False, highlight=False)
    out.print(_runs(document))
    if document["design"] == "leave_one_site_out" and any(row["shared"] for row in document["sites"]):
        out.print(_with_and_without(document["sites"]))
    caution = data_words(str(document["cohort"])).caution
    lines = [caution, *(f"Next    {step}" for step in next_steps(document)), f"Report  {report}",
             f"Runs    {run_dir / 'design'}/<run>"]  # fmt: skip
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _runs(document: Mapping[str, Any]) -> Table:
    level = round(100 * document["confidence"])
    table = _table("Women tested who did not train", ("Run", "Women\n(cancer)", f"AUC\n({level} % interval)",
                   "Sensitivity\n(interval)", "Realised\nspecificity", "Slope"))  # fmt: skip
    for row in document["runs"]:
        table.add_row(run_words(str(row["name"])), *_cells(row))
    if document["folds"]:
        fused, women = document["folds"]["fused"], document["women"]
        area = {"auc": fused["mean"], "auc_low": fused["mean_low"], "auc_high": fused["mean_high"]}
        counts = {"n": women["tested"], "positives": women["positives"]}
        table.add_row("all folds", *_cells({**(document["pooled"] or {}), **area, **counts}), style="bold")
    if document["periods"]:
        for name in ("earlier", "later"):
            if document["periods"][name]:
                table.add_row(f"  {name}", *_cells(document["periods"][name]))
    return table


def _cells(row: Mapping[str, Any]) -> Sequence[str]:
    sensitivity = f"{share(row.get('sensitivity'))}\n({percent_of(row.get('sensitivity_low'))}-" \
                  f"{percent_of(row.get('sensitivity_high'))})"  # fmt: skip
    slope = row.get("calibration_slope")
    return (
        f"{row['n']:,}\n({row['positives']:,})",
        f"{decimal(row['auc'])}\n({decimal(row['auc_low'])}-{decimal(row['auc_high'])})", sensitivity,
        share(row.get("specificity")), "–" if slope is None else f"{slope:.2f}",
    )  # fmt: skip


def _with_and_without(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Women whom neither model trained on", ("Site", "Women\n(cancer)", "AUC\nwithout it", "AUC\nwith it",
                   "Difference\n(interval)", "p (Holm)"))  # fmt: skip
    for row in rows:
        found = row["shared"]
        if not found:
            continue
        low, high = found["difference_low"], found["difference_high"]
        gap = "–" if found["difference"] is None else f"{found['difference']:+.3f}"
        reach = "" if low is None else f"\n({low:+.3f} to {high:+.3f})"
        p = found["p_adjusted"]
        table.add_row(row["site"], f"{found['n']}\n({found['positives']})", decimal(found["without"]),
                      decimal(found["with"]), f"{gap}{reach}", "–" if p is None else f"{p:.3f}")  # fmt: skip
    return table


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for position, head in enumerate(heads):
        table.add_column(head, justify="right" if position else "left", no_wrap=bool(position))
    return table
