"""The command `mammofed status`; thin, the work is in `status`."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("target", metavar="RUN_DIR|HOME", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--study", help="This one alone, by its name or its folder's.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def status(target: Path, study: str | None, as_json: bool) -> None:
    """How a study stands, in one line; of several (a coordinator's HOME, a folder of runs) one line each.

    The exit code says it: 0 complete, 100 running, 101 preparing, 102 stalled, 103 incomplete, 104 failed, 105 unknown
    (its protocol cannot be read, or is not its journal's); of several studies that of the worst. Who is enrolled and
    here: `mammofed server status`.

    Example:  mammofed status runs/quick-20261122-120000 --json
    """
    from server.monitor.status import exit_code, show, views_of

    views = views_of(target.resolve(), study=study)
    show(views, as_json=as_json)
    sys.exit(exit_code(views))
