"""`mammofed site egress`: everything that ever left this site; thin, the work is in `egress_log` and `egress_table`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("home", type=click.Path(file_okay=False, path_type=Path))
@click.option("--study", help="This study only.")
@click.option("--json", "as_json", is_flag=True, help="Every value, one JSON document a reply.")
def egress(home: Path, study: str | None, as_json: bool) -> None:
    """Every value that left HOME: what, why, to whom, how protected. The list is checked line by line as it is read.

    HOME may also be one site of a simulation: RUN/sites/NAME.

    Example:  mammofed site egress site --study density-2027
    """
    from rich.console import Console

    from client.deploy.home import SiteHome
    from client.privacy.egress_log import LOG_FILE, read_list
    from client.privacy.egress_table import as_json as lines
    from client.privacy.egress_table import chosen, show

    simulated = home / "state"
    state = simulated if simulated.is_dir() else SiteHome.open(home).state
    found = chosen(read_list(state), study=study)
    if as_json:
        click.echo(lines(found))
        return
    if not found:
        click.echo("Nothing left this site" + (f" for study {study}" if study else "") + " yet.")
    else:
        show(found, Console())
    click.echo(f"Next  `mammofed audit verify {state / LOG_FILE}` checks the list's chain and key")
