"""The site's commands: `mammofed site ...`; thin. Data: the work is in `ingest`; taking part: in `deploy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from client.deploy.cli import COMMANDS
from client.gain.cli import gain
from client.inference.cli import COMMANDS as INFERENCE

if TYPE_CHECKING:
    from client.ingest.imports import Imported
    from client.ingest.site_file import SiteFile

SITE = click.argument("site_yaml", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group()
def site() -> None:
    """What a hospital runs: its own data into a prepared cohort, and its part in a consortium's studies.

    Start with:  mammofed site example north
    """


for command in (*COMMANDS, *INFERENCE, gain):
    site.add_command(command)


@site.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def example(folder: Path) -> None:
    """Write a site.yaml with every setting and a word on each, and a new secret key, into FOLDER.

    Example:  mammofed site example north
    """
    from client.ingest.example import write_example

    path = write_example(folder)
    click.echo(f"Site file   {path}\nKey         {path.with_name('importer.key')} (keep it: pseudonyms hang on it)")
    click.echo(f"Next        edit the site file, then `mammofed site import {path}`")


@site.command(name="import")
@SITE
def import_(site_yaml: Path) -> None:
    """Bring films and facts in: sources -> cohort or quarantine. Run it again for what is new; kill it when you like.

    Example:  mammofed site import north/site.yaml
    """
    from client.ingest.imports import import_site

    done = import_site(_read(site_yaml), stage=_stage)
    _show_import(done)
    if done.report.films_quarantined or done.report.rows_quarantined or done.report.patients_quarantined:
        click.echo(f"Left out    `mammofed site quarantine list {site_yaml}` says what, and why")
    click.echo(f"Next        `mammofed site data {site_yaml}` shows the cohort")


@site.command()
@SITE
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the page here (default: beside the cohort).")  # fmt: skip
@click.option("--against", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Another prepared cohort, say a held-out one: is any woman or film in both?")  # fmt: skip
def data(site_yaml: Path, page: Path | None, against: Path | None) -> None:
    """Show the state of the cohort, small counts suppressed: in the terminal, and as one page without identities.

    Example:  mammofed site data north/site.yaml
    """
    from rich.console import Console

    from client.ingest.page import show, write_page
    from client.ingest.quality import shared_patients
    from client.ingest.state import state_of
    from shared_model.cohort import Cohort
    from shared_model.errors import CohortError

    settings = _read(site_yaml)
    summary = state_of(settings)
    show(summary, Console())
    path = page or settings.cohort.with_name(settings.cohort.name + ".html")
    write_page(summary, path)
    click.echo(f"Page        {path}")
    if against is not None:
        ours, theirs = Cohort.open(settings.cohort), Cohort.open(against)
        if ours.pipeline_sha256 != theirs.pipeline_sha256:
            raise CohortError(
                "the cohorts were prepared by different pipelines, so that equal films look different",
                found=theirs.pipeline_sha256[:16], expected=ours.pipeline_sha256[:16],
                remedy="prepare both with the same `imaging` settings",
            )  # fmt: skip
        both = shared_patients(ours, theirs)
        if both:
            raise CohortError(
                "women or films are in both cohorts", found=f"{len(both)}, among them {both[0]}", expected="none",
                remedy="`mammofed site exclude` one after another, then import again",
            )  # fmt: skip
        click.echo("Overlap     none: no woman of one key and no equal view is in both cohorts")


@site.group()
def quarantine() -> None:
    """What is not in the cohort, and why: every film, row, file and woman that was set aside."""


@quarantine.command(name="list")
@SITE
@click.option("--reason", help="This reason only.")
def list_(site_yaml: Path, reason: str | None) -> None:
    """Counts by reason, in words; with --reason, one line for each thing.

    Example:  mammofed site quarantine list north/site.yaml --reason no_laterality
    """
    from rich.console import Console

    from client.ingest.state import quarantine_table

    Console().print(quarantine_table(_read(site_yaml), reason))
    click.echo(f"Next        `mammofed site quarantine show {site_yaml} film 1` tells of one thing")


@quarantine.command()
@SITE
@click.argument("kind", type=click.Choice(["film", "row", "file", "patient"]))
@click.argument("which")
@click.option("--identify", is_flag=True, help="Also say who and where, on this terminal only; needs the key.")
def show(site_yaml: Path, kind: str, which: str, identify: bool) -> None:
    """Tell of one thing: a film, row or file by its number, a woman by her pseudonym.

    Example:  mammofed site quarantine show north/site.yaml film 17 --identify
    """
    from client.ingest.state import entry_lines

    for line in entry_lines(_read(site_yaml), kind, which, identify=identify):
        click.echo(line)


@quarantine.command()
@SITE
@click.option("--reason", multiple=True, help="These reasons only (default: all).")
def retry(site_yaml: Path, reason: tuple[str, ...]) -> None:
    """Import again, reading anew the films that were refused.

    Example:  mammofed site quarantine retry north/site.yaml --reason undecodable
    """
    from client.ingest.imports import forget_refusals, import_site

    settings = _read(site_yaml)
    count = forget_refusals(settings, reason or None)
    click.echo(f"{count} refused films are read anew")
    _show_import(import_site(settings, stage=_stage))


@site.command()
@SITE
@click.argument("patient")
@click.option("--ledger", type=click.Path(exists=True, dir_okay=False, path_type=Path), multiple=True,
              help="Privacy ledgers of this site's trainer: which studies did her data enter?")  # fmt: skip
@click.option("--pseudonym", is_flag=True, help="PATIENT is a pseudonym and not the hospital's id.")
@click.option("--undo", is_flag=True, help="Take the objection back.")
def exclude(site_yaml: Path, patient: str, ledger: tuple[Path, ...], pseudonym: bool, undo: bool) -> None:
    """Act on a woman's objection: PATIENT leaves the cohort and does not come back with the next import.

    Example:  mammofed site exclude north/site.yaml 4711 --ledger /var/lib/mammofed/trainer/ledger.json
    """
    from client.ingest.exclusion import exclude_patient

    for line in exclude_patient(_read(site_yaml), patient, is_pseudonym=pseudonym, ledgers=ledger, undo=undo,
                                stage=_stage):  # fmt: skip
        click.echo(line)


def _read(path: Path) -> SiteFile:
    from client.ingest.site_file import read_site

    return read_site(path)


@contextmanager
def _stage(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that knows its total once work has begun; plain lines where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show_import(done: Imported) -> None:
    from rich.console import Console
    from rich.table import Table

    report = done.report
    table = Table(title=f"Import of {report.site}", title_justify="left")
    for column in ("", "found", "prepared", "set aside"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("films", "rows", "patients"):
        found, prepared, aside = (getattr(report, name + part) for part in ("", "_prepared", "_quarantined"))
        table.add_row(name, f"{found:,}", f"{prepared:,}", f"{aside:,}")
    console = Console()
    console.print(table)
    for name, collected in done.collected.items():
        console.print(f"{name}: {collected.words()}", highlight=False)
    for warning in (*report.warnings, *map(str, done.findings), *map(str, done.drifted)):
        console.print(f"! {warning}", highlight=False)
    for name in done.dropped:
        console.print(f"! {name} was written for the former cohort and is removed: write it again", highlight=False)
    changed = "unchanged" if done.unchanged else "written"
    click.echo(f"Cohort      {changed}, content {(report.content_sha256 or '')[:16]}, {report.seconds:.1f} s")
