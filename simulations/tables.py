"""The tables that a study ends with in the terminal: the result, its privacy, who took part, what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.reporting.answer import answer, model_rows, unheard_sites
from server.reporting.facts import data_of, mapping, read_other_deltas
from server.reporting.words import women
from shared_model.protocol import Protocol, SiteTerms
from simulations.words import bytes_in_words, seconds_in_words

STATUS_STYLES = {"COMPLETE": "bold green", "INCOMPLETE": "bold red", "STOPPED": "bold yellow"}
SHOWN_SITES = 20  # lines of the table of sites; all stand in the report
OUTCOMES = ("contributed", "abstained", "late", "refused", "failed", "not_sampled")


def final_tables(summary: Mapping[str, Any], protocol: Protocol, *, run_dir: Path, report: Path) -> RenderableType:
    """Everything that is printed at the end of a study.

    Args:
        summary: the content of `summary.json`.
        report: path of the report that was written.
    """
    status = str(summary.get("status", "INCOMPLETE"))
    traffic = mapping(summary.get("bytes"))
    head = Text.assemble(
        ("\n" + status, STATUS_STYLES.get(status, "bold")),
        f"  {summary.get('rounds_completed', 0)} of {summary.get('rounds_planned', protocol.rounds)} rounds in "
        f"{seconds_in_words(float(summary.get('seconds') or 0))}, "
        f"{bytes_in_words(sum(traffic.values()))} between sites and coordinator",
    )
    sentences = answer(summary, protocol, data=data_of(run_dir))
    parts: list[RenderableType] = [head, *(Text(sentence) for sentence in sentences)]
    rows = model_rows(summary, protocol)
    if rows:
        parts.append(_held_out_table(rows, summary, protocol))
    parts += [_site_table(summary, protocol), *_deltas(run_dir), _next_steps(status, run_dir=run_dir, report=report)]
    return Group(*parts)


def _held_out_table(rows: list[dict[str, Any]], summary: Mapping[str, Any], protocol: Protocol) -> Table:
    held_out = summary["metrics"]["held_out"]
    percent, level = round(100 * protocol.evaluation.confidence), round(100 * protocol.evaluation.specificity)
    title = f"Held-out test split: {women(held_out['n'])} women, {women(held_out['positives'])} with cancer"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Model", min_width=24)
    table.add_column(f"AUC ({percent} % interval)", justify="right", no_wrap=True)
    table.add_column(f"Sensitivity\nat {level} % spec.", justify="right")
    table.add_column("Realised\nspecificity", justify="right")
    for row in rows:
        table.add_row(
            row["label"], area(row),
            f"{share(row.get('sensitivity'))} "
            f"({percent_of(row.get('sensitivity_low'))}-{percent_of(row.get('sensitivity_high'))})",
            share(row.get("specificity")), style="bold" if row["key"] == "fused" else "",
        )  # fmt: skip
    return table


def area(row: Mapping[str, Any]) -> str:
    """`0.870 (0.840-0.900)`; without bounds where one score for all women makes them meet."""
    low, high = row.get("auc_low"), row.get("auc_high")
    return f"{decimal(row.get('auc'))}" + ("" if low == high else f" ({decimal(low)}-{decimal(high)})")


def _site_table(summary: Mapping[str, Any], protocol: Protocol) -> Table:
    privacy, participation = mapping(summary.get("privacy")), mapping(summary.get("participation"))
    shown = [
        name for name in OUTCOMES if name == "contributed" or any(mapping(p).get(name) for p in participation.values())
    ]
    unheard = unheard_sites(summary)
    many = len(protocol.federation.sites)
    title = "Sites" if many <= SHOWN_SITES else f"Sites: the {SHOWN_SITES} of {many} that contributed least"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Site", no_wrap=True)
    table.add_column("Patients", justify="right")
    for name in shown:
        table.add_column(name.replace("_", " ").capitalize(), justify="right")
    if protocol.private:
        table.add_column(f"Epsilon of budget (delta {protocol.privacy.delta:g})", justify="right")
    for site in _least_present(protocol.federation.sites, participation):
        counts, spent = mapping(participation.get(site.name)), mapping(privacy.get(site.name))
        cells = [site.name, f"{site.patients:,}", *(str(counts.get(name, 0)) for name in shown)]
        if protocol.private:
            epsilon = spent.get("epsilon")
            told = "none told" if site.name in unheard else "none spent"
            least = "at least " if site.name in unheard else ""
            cells.append(told if epsilon is None else f"{least}{epsilon:.2f} of {spent['budget']:.2f}")
        table.add_row(*cells)
    return table


def _least_present(sites: Sequence[SiteTerms], participation: Mapping[str, Any]) -> list[SiteTerms]:
    """All sites, or of many those that contributed least, in name order."""
    least = sorted(sites, key=lambda s: (mapping(participation.get(s.name)).get("contributed", 0), s.name))
    return sorted(least[:SHOWN_SITES], key=lambda site: site.name)


def _deltas(run_dir: Path) -> list[RenderableType]:
    """Epsilon at further deltas, greatest over sites, in one line; nothing when they were not computed."""
    worst: dict[str, float] = {}
    for row in read_other_deltas(run_dir).values():
        for delta, epsilon in row.items():
            worst[delta] = max(worst.get(delta, 0.0), epsilon)
    words = ", ".join(f"{worst[delta]:.2f} at delta {delta}" for delta in sorted(worst, key=float, reverse=True))
    return [Text(f"Of the site that spent most, the same as epsilon {words}", style="dim")] if words else []


def _next_steps(status: str, *, run_dir: Path, report: Path) -> Text:
    lines = [("Run directory  ", str(run_dir)), ("Report         ", str(report))]
    if status == "COMPLETE":
        lines.append(("Model          ", str(run_dir / "model.safetensors")))
        lines.append(("Next           ", "open the report; compare with `mammofed simulate privacy=none`"))
    else:
        lines.append(("Next           ", f"mammofed simulate resume {run_dir}"))
    return Text("\n").join([Text.assemble((name, "dim"), value) for name, value in lines])


def decimal(value: object) -> str:
    """A number with three decimals, a dash when there is none."""
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"


def share(value: object) -> str:
    """A share in [0, 1] as whole percent, a dash when there is none."""
    return f"{percent_of(value)} %" if isinstance(value, (int, float)) else "–"


def percent_of(value: object) -> str:
    """A share in [0, 1] as a whole number of percent without the sign, a dash when there is none."""
    return f"{100 * value:.0f}" if isinstance(value, (int, float)) else "–"
