"""The coordinator's commands that need no running study."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(run_dir: Path) -> None:
    """Write summary.json and report.html of RUN_DIR again from its journal.

    Example:  mammofed report runs/quick-20261122-120000
    """
    from server.reporting import write_report
    from server.rounds.summary import write_summary

    write_summary(run_dir)
    click.echo(f"Report: {write_report(run_dir)}")
