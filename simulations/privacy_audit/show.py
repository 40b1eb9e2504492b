"""Shows an audit: as a table on the terminal, as JSON, and as one HTML page that needs nothing from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from shared_model.errors import StorageError
from simulations.privacy_audit.finding import Audit, Verdict
from simulations.words import seconds_in_words

SCHEMA_VERSION = 1
STYLES: Mapping[Verdict, str] = {
    Verdict.HELD: "green", Verdict.BROKEN: "bold red", Verdict.LEFT_OUT: "yellow",
}  # fmt: skip
LIMITS = (
    "An audit can find that a promise is broken; it cannot prove that it is kept. What proves it is the mathematics "
    "of the mechanism, for code that does what the mechanism says, and this looks at that code from outside. It was "
    "run on this machine with synthetic women: a hospital's own machine is audited by running it there."
)


def draw(audit: Audit) -> RenderableType:
    """Everything for the terminal."""
    table = Table(title=f"Privacy audit of study {escape(audit.study)}", title_justify="left", box=SIMPLE_HEAD,
                  pad_edge=False)  # fmt: skip
    for column in ("", "Check", "Found"):
        table.add_column(column, overflow="fold", no_wrap=not column)
    for finding in audit.findings:
        verdict = Text(finding.verdict, style=STYLES[finding.verdict])
        table.add_row(verdict, escape(finding.title), escape(finding.words))
    style = "bold red" if audit.broken else "bold green"
    claims = ", ".join(f"{name} {value}" for name, value in audit.claims.items())
    return Group(table, Text(f"Promised: {claims}", style="dim"), Text(audit.headline, style=style),
                 Text(f"{LIMITS} ({seconds_in_words(audit.seconds)})", style="dim"))  # fmt: skip


def as_json(audit: Audit) -> str:
    """For scripts."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "headline": audit.headline, "limits": LIMITS,
                       **asdict(audit)}, indent=1) + "\n"  # fmt: skip


def as_html(audit: Audit) -> str:
    """The page as text; the same audit gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("simulations.privacy_audit", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("audit.html.j2").render(
        a=audit, limits=LIMITS, took=seconds_in_words(audit.seconds)
    )


def write(audit: Audit, folder: Path) -> tuple[Path, Path]:
    """Write `audit.json` and `audit.html` into a folder, which is made.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = folder / "audit.json", folder / "audit.html"
        files[0].write_text(as_json(audit), encoding="utf-8")
        files[1].write_text(as_html(audit), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write into {folder}: {error.strerror}", remedy="choose another --output") from None
    return files
