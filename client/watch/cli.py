"""`mammofed site watch HOME`: thin, the work is in `run`; mounted by `client.deploy.cli`.

`mammofed monitor https://...` calls it with a `page`, which is the server's, so that neither room imports the other.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # `mammofed site --help` need not read protocols
    from shared_model.story import Page


@click.command()
@click.argument("home", type=click.Path(file_okay=False, path_type=Path))
@click.option("--url", help="https://HOST:PORT of the coordinator, to be sure that it is the one that is meant.")
@click.option("--study", help="This study only.")
@click.option("--proxy", envvar="MAMMOFED_PROXY",
              help="http://[user:password@]host:port; better as MAMMOFED_PROXY.")  # fmt: skip
def watch(home: Path, url: str | None, study: str | None, proxy: str | None, page: Page | None = None) -> None:
    """How this site's studies go, as the coordinator tells this site; until Ctrl-C. Run it as the courier's user.

    Of other hospitals it says that something happened, but neither words nor numbers. In a browser instead of the
    terminal: `mammofed monitor https://HOST:PORT --home HOME`.

    Example:  mammofed site watch site
    """
    import threading

    from client.deploy.control import ControlLine
    from client.deploy.home import SiteHome
    from client.deploy.proxy import Proxy
    from client.watch.run import certificate_ends, check_address, follow, known_protocols
    from client.watch.show import Screen
    from shared_model.story import Story

    there = SiteHome.open(home.resolve())
    identity = there.identity()
    if url is not None:
        check_address(url, identity.settings)
    through = Proxy.parse(proxy) if proxy else None
    protocols = partial(known_protocols, there)
    story = Story(identity.settings.site, rounds={name: found.rounds for name, found in protocols().items()},
                  certificate_ends=partial(certificate_ends, identity))  # fmt: skip
    try:
        with page(story, protocols) if page is not None else Screen(story, study=study) as watcher:
            follow(identity, story, watcher, stop=threading.Event(),
                   line=lambda who: ControlLine(who, proxy=through))  # fmt: skip
    except KeyboardInterrupt:
        click.echo("Watched no longer; what happens goes on.", err=True)
