"""`mammofed site withdraw`: thin, the work is in `withdraw`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("home", type=click.Path(file_okay=False, path_type=Path))
@click.argument("study")
@click.option("--reason", default="", help="In this site's own record; it is not sent.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def withdraw(home: Path, study: str, reason: str, yes: bool) -> None:
    """Leave STUDY for good: nothing more is trained or sent for it, also under a later protocol of its name.

    Says which rounds this site gave to, and what epsilon covers the models that came of them.

    Example:  mammofed site withdraw site density-2027
    """
    from client.deploy.home import SiteHome
    from client.deploy.withdraw import withdraw as leave
    from client.deploy.withdraw import words_of
    from client.trainer.site import release

    there = SiteHome.open(home.resolve())
    if not yes:
        click.confirm(f"Leave {study}? It cannot be undone: a mere pause is `mammofed site decline`.", abort=True)
    found = leave(there, study, release=release(), reason=reason)
    for line in words_of(found, site=there.identity().settings.site):
        click.echo(line)
