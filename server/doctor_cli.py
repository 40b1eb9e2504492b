"""`mammofed server doctor HOME`: thin, the work is in `doctor`; mounted by `server.cli`."""

from __future__ import annotations

from pathlib import Path

import click

_OUT = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("home", type=click.Path(file_okay=False, path_type=Path))
@click.option("--html", type=_OUT, help="Also write one page.")
@click.option("--json", "json_", type=_OUT, help="Also write the findings for scripts.")
def doctor(home: Path, html: Path | None, json_: Path | None) -> None:
    """Examine this coordinator: machine, doors, certificates, members, records; says what to do. Changes nothing.

    Exit code 0 when nothing is red, else 80.

    Example:  mammofed server doctor coordinator
    """
    from server.deploy.home import CoordinatorHome
    from server.doctor import examine
    from shared_model.doctor.page import as_html, as_json, show, write

    diagnosis = examine(CoordinatorHome.open(home.resolve()))
    show(diagnosis)
    if html is not None:
        write(as_html(diagnosis), html)
    if json_ is not None:
        write(as_json(diagnosis), json_)
    diagnosis.raise_if_red()
