"""`mammofed site doctor HOME`: thin, the work is in `doctor`; mounted by `client.cli`."""

from __future__ import annotations

from pathlib import Path

import click

_OUT = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("home", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--html", type=_OUT, help="Also write one page, to mail to the coordinator: it names no patient.")
@click.option("--json", "json_", type=_OUT, help="Also write the findings for scripts.")
@click.option("--proxy", envvar="MAMMOFED_PROXY", help="http://[user:password@]host:port; better as MAMMOFED_PROXY.")
def doctor(home: Path, html: Path | None, json_: Path | None, proxy: str | None) -> None:
    """Examine this site: machine, line, certificate, cohort, policy, budget; says what to do. Changes nothing.

    Exit code 0 when nothing is red, else 80.

    Example:  mammofed site doctor /srv/mammofed --html doctor.html
    """
    from client.deploy.doctor import examine
    from client.deploy.home import SiteHome
    from client.deploy.proxy import Proxy
    from shared_model.doctor.page import as_html, as_json, show, write

    through = Proxy.parse(proxy) if proxy else None
    diagnosis = examine(SiteHome(home.resolve()), proxy=through)
    show(diagnosis)
    if html is not None:
        write(as_html(diagnosis), html)
    if json_ is not None:
        write(as_json(diagnosis), json_)
    diagnosis.raise_if_red()
