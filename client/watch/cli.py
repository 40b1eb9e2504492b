"""`mammofed site watch HOME`: thin, the work is in `run`; mounted by `client.deploy.cli`, and `monitor https://...`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("home", type=click.Path(file_okay=False, path_type=Path))
@click.option("--url", help="https://HOST:PORT of the coordinator, to be sure that it is the one that is meant.")
@click.option("--study", help="This study only.")
@click.option("--proxy", envvar="MAMMOFED_PROXY",
              help="http://[user:password@]host:port; better as MAMMOFED_PROXY.")  # fmt: skip
def watch(home: Path, url: str | None, study: str | None, proxy: str | None) -> None:
    """How this site's studies go, as the coordinator tells this site; until Ctrl-C. Run it as the courier's user.

    Of other hospitals it says that something happened, but neither words nor numbers.

    Example:  mammofed site watch site
    """
    import threading

    from client.deploy.control import ControlLine
    from client.deploy.home import SiteHome
    from client.deploy.proxy import Proxy
    from client.watch.run import check_address, follow, known_rounds
    from client.watch.show import Screen
    from client.watch.story import Story

    there = SiteHome.open(home.resolve())
    identity = there.identity()
    if url is not None:
        check_address(url, identity.settings)
    through = Proxy.parse(proxy) if proxy else None
    story = Story(identity.settings.site, rounds=known_rounds(there))
    try:
        with Screen(story, study=study) as screen:
            follow(identity, story, screen, stop=threading.Event(),
                   line=lambda who: ControlLine(who, proxy=through))  # fmt: skip
    except KeyboardInterrupt:
        click.echo("Watched no longer; what happens goes on.", err=True)
