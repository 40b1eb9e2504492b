"""Shows a diagnosis: as a table on the terminal, as JSON, and as one HTML page that needs nothing from outside."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared_model.doctor.check import Check, Diagnosis, Level
from shared_model.errors import StorageError

SCHEMA_VERSION = 1
_STYLE = {Level.GREEN: "green", Level.AMBER: "yellow", Level.RED: "bold red"}


def headline(diagnosis: Diagnosis) -> str:
    """The diagnosis in one sentence."""
    if diagnosis.worst is Level.GREEN:
        return "All is well."
    asks = ((Level.RED, "must be put right"), (Level.AMBER, "should be looked at"))
    parts = [f"{diagnosis.count(level)} {words}" for level, words in asks if diagnosis.count(level)]
    return f"Of {len(diagnosis.checks)} checks, {', '.join(parts)}."


def show(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print the table, with what is for this machine's terminal alone."""
    console = console or Console()
    table = Table(title=f"{diagnosis.who} ({diagnosis.role}), MammoFed {diagnosis.release}", title_justify="left")
    for column in ("", "check", "found", "to do"):
        table.add_column(column, overflow="fold")
    for check in diagnosis.checks:
        words = escape(check.words) + (f"\n[dim]{escape(check.local)}[/dim]" if check.local else "")
        colour = _STYLE[check.level]
        table.add_row(f"[{colour}]{check.level}[/{colour}]", escape(check.title), words, escape(check.remedy))
    console.print(table)
    console.print(headline(diagnosis), highlight=False)


def as_json(diagnosis: Diagnosis) -> str:
    """For scripts. Holds nothing that the page does not hold."""
    document = {
        "schema_version": SCHEMA_VERSION, "who": diagnosis.who, "role": diagnosis.role, "release": diagnosis.release,
        "when": diagnosis.when, "worst": diagnosis.worst, "checks": [_public(check) for check in diagnosis.checks],
    }  # fmt: skip
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def as_html(diagnosis: Diagnosis) -> str:
    """The page as text; the same diagnosis gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("shared_model.doctor", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    checks = [_public(check) for check in sorted(diagnosis.checks, key=_worst_first)]
    return environment.get_template("doctor.html.j2").render(d=diagnosis, checks=checks, headline=headline(diagnosis))


def write(text: str, path: Path) -> None:
    """Write a page.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror}", remedy="choose another path") from None


def _public(check: Check) -> dict[str, str]:
    return {"name": check.name, "title": check.title, "level": check.level.value, "words": check.words,
            "to_do": check.remedy}  # fmt: skip


def _worst_first(check: Check) -> int:
    return -tuple(Level).index(check.level)
