"""Watches studies for alarms and feeds writers, in a process of its own: nothing of it is taken from a round loop.

    python -P -m server.monitor.companion PLACE [--writer mlflow] [--file monitor.yaml] [--until-eof]

Started by the coordinator's daemon over its home, and beside a simulation with `monitor.writers` or `monitor.alarms`.
With `--until-eof` it ends when its standard input does, which the kernel sees to, however whoever started it ends.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from server.monitor.keeper import Keeper
from server.monitor.places import runs_or_none
from server.monitor.rules import OWN_FILE, MonitorFile
from server.monitor.writers import Feeds, check_writers
from shared_model.errors import MammoFedError


def command_of(
    place: Path, *, writers: Sequence[str] = (), file: Path | None = None, until_eof: bool = False
) -> list[str]:
    """The argument list that starts it."""
    options = [option for name in writers for option in ("--writer", name)]
    options += ["--file", str(file)] if file is not None else []
    return [sys.executable, "-P", "-m", "server.monitor.companion", str(place), *options,
            *(["--until-eof"] if until_eof else [])]  # fmt: skip


def accompany(place: Path, over: threading.Event, *, writers: Sequence[str] = (), file: Path | None = None) -> None:
    """Watch and feed until `over`; then look once more.

    Raises:
        ConfigError: the file, or the name of a writer, is wrong, or its package is not installed.
    """
    own = file if file is not None else place / OWN_FILE
    names = check_writers([*MonitorFile.read(own).writers, *writers])
    with ExitStack() as stack:
        stack.enter_context(Keeper(lambda: runs_or_none(place), own=own))
        stack.enter_context(Feeds(lambda: runs_or_none(place), names))
        over.wait()


@click.command()
@click.argument("place", type=click.Path(path_type=Path))
@click.option("--writer", "writers", multiple=True)
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--until-eof", is_flag=True)
def main(place: Path, writers: tuple[str, ...], file: Path | None, until_eof: bool) -> None:
    """Watch the studies of PLACE."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    over = threading.Event()
    # Whoever started it decides when it ends: a Ctrl-C in a terminal reaches both.
    signal.signal(signal.SIGINT, signal.SIG_IGN if until_eof else lambda *_: over.set())
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    if until_eof:
        threading.Thread(target=_wait_for_end, args=(over,), daemon=True).start()
    try:
        accompany(place.absolute(), over, writers=writers, file=file)
    except MammoFedError as error:
        click.echo(f"mammofed: {error}", err=True)
        sys.exit(error.exit_code)


def _wait_for_end(over: threading.Event) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    over.set()


if __name__ == "__main__":
    main()
