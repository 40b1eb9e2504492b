"""Shows a summary: as tables on the terminal, and as one HTML page that needs nothing from outside and names nobody."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.ingest import join_policy, quality, quarantine
from client.ingest.summary import Shown, Summary
from shared_model.errors import StorageError
from shared_model.imaging import REASONS as FILM_REASONS

HIDDEN = "hidden"
ACCOUNTS = ("films", "rows", "patients")


def words_of(reason: str) -> str:
    """A reason code in words, "" for what is none (`prepared`)."""
    if reason in FILM_REASONS:
        return "; ".join(FILM_REASONS[reason])
    listed = join_policy.REASONS | quarantine.REASONS | quality.RULES
    return listed.get(reason, "")


def headline(summary: Summary) -> str:
    """The cohort in one sentence."""
    label = summary.table("label")
    positives = dict(label.rows).get("with cancer") if label else None
    films = summary.table("films")
    prepared = dict(films.rows).get("prepared") if films else None
    women = _number(summary.patients) if summary.patients is not None else f"fewer than {summary.threshold}"
    with_cancer = "a hidden number" if positives is None else _number(positives)
    shown = "a hidden number of" if prepared is None else _number(prepared)
    return f"{women} women are prepared, {with_cancer} of them with cancer, with {shown} films."


def render(summary: Summary) -> str:
    """The page as text; the same summary gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("client.ingest", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": _number, "words": words_of, "bar": _bar, "percent": _percent}
    fields = [table for table in summary.tables if table.name.startswith("field.")]
    women = [table for table in summary.tables if table not in fields and table.name not in ACCOUNTS]
    return environment.get_template("cohort.html.j2").render(
        summary=summary, headline=headline(summary), women=women, fields=fields, hidden=HIDDEN,
        missing=[(t.name.removeprefix("field."), dict(t.rows).get("missing"), t.share("missing")) for t in fields],
        accounts=[table for table in summary.tables if table.name in ACCOUNTS],
    )  # fmt: skip


def write_page(summary: Summary, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    draft = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        draft.write_text(render(summary), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}", remedy="make room, ask again") from None


def show(summary: Summary, console: Console) -> None:
    """The summary on a terminal. Texts of headers are escaped: they are data and no markup."""
    console.print(f"[bold]{escape(summary.site)}[/bold]: {escape(headline(summary))}")
    for table in summary.tables:
        if not table.name.startswith("field."):
            console.print(_terminal_table(table))
    fields = Table(title="Clinical fields", title_justify="left", expand=False)
    fields.add_column("field", overflow="fold")
    fields.add_column("not known", justify="right")
    fields.add_column("values", overflow="fold")
    for table in (t for t in summary.tables if t.name.startswith("field.")):
        values = ", ".join(
            f"{label} {_number(count)}" for label, count in table.rows if label != "missing" and count != 0
        )
        fields.add_row(escape(table.name.removeprefix("field.")), _with_share(table, "missing"), escape(values))
    console.print(fields)
    for warning in summary.warnings:
        console.print(f"[yellow]![/yellow] {escape(warning)}")
    console.print(f"[dim]{HIDDEN}: from 1 to {summary.threshold - 1}, or hidden so that such a number cannot be worked "
                  "out[/dim]")  # fmt: skip


def _terminal_table(table: Shown) -> Table:
    shown = Table(title=escape(table.title), title_justify="left", expand=False)
    shown.add_column("", overflow="fold")
    shown.add_column(f"of {_number(table.total)}", justify="right")
    for label, count in table.rows:
        if count != 0 or not table.name.startswith("age"):
            reason = words_of(label) if table.name in ACCOUNTS else ""
            shown.add_row(escape(f"{label}: {reason}" if reason else label), _with_share(table, label))
    return shown


def _with_share(table: Shown, label: str) -> str:
    share = table.share(label)
    return _number(dict(table.rows)[label]) + ("" if share is None else f" ({share:.0%})")


def _number(count: int | None) -> str:
    return HIDDEN if count is None else f"{count:,}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _bar(share: float | None) -> str:
    """Width of a bar, per cent of its column."""
    return "0" if share is None else f"{100 * share:.1f}"
