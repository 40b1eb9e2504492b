"""`mammofed monitor`: watch federated rounds, on a page or in the terminal; thin, the work is in this folder."""

from __future__ import annotations

from pathlib import Path

import click

from shared_model.errors import ConfigError

PLACE = Path("runs")  # what is shown when nothing is named


@click.command()
@click.argument("target", required=False)
@click.option("--port", default=8787, show_default=True, help="Of the page; 0 takes any that is free.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@click.option("--terminal", is_flag=True, help="In this terminal, without a page; for SSH.")
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on; any but this machine's own needs --cert, --key and --token-file.")  # fmt: skip
@click.option("--name", "names", multiple=True, help="Host name in the page's address; may be given again.")
@click.option("--cert", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="TLS certificate, PEM.")
@click.option("--key", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="Its key, PEM.")
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path),
              help="What readers must know; made when it is absent.")  # fmt: skip
def monitor(
    target: str | None, port: int, no_open: bool, terminal: bool, host: str, names: tuple[str, ...], cert: Path | None,
    key: Path | None, token_file: Path | None,
) -> None:  # fmt: skip
    """Watch TARGET: a run directory, a folder of runs (default: ./runs), or a coordinator's home.

    Nothing can be changed from here, and watching does not slow a study.

    Example:  mammofed monitor runs/quick-20261122-120000
    """
    from server.monitor.web.serve import Door, serve, token_of

    place = place_of(target)
    if terminal:
        raise ConfigError("--terminal is not here yet")
    token = token_of(token_file) if token_file is not None else None
    door = Door(host=host, port=port, names=names, cert=cert, key=key, token=token)

    def say(url: str) -> None:
        click.echo(f"Monitor  {url}   (Ctrl-C ends it; the study goes on)")

    serve(place, door, say=say, open_browser=not no_open)


def place_of(target: str | None) -> Path:
    """The folder to watch.

    Raises:
        ConfigError: nothing was named and there is no `runs`, or what was named is not there.
    """
    if target is None and not PLACE.is_dir():
        raise ConfigError("which study?", found="no folder `runs` here", remedy="`mammofed monitor RUN_DIR`")
    place = PLACE if target is None else Path(target)
    if not place.is_dir():
        raise ConfigError(f"{place} is no folder", expected="a run directory, a folder of them, or a coordinator's home")
    return place.resolve()
