"""`mammofed monitor`: watch federated rounds, on a page or in the terminal; thin, the work is in this folder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from server.monitor.alarms import for_people, with_alarms
from server.monitor.keeper import machine_of
from server.monitor.view import StudyView
from shared_model.errors import ConfigError

if TYPE_CHECKING:  # `--help` and a terminal need no web server
    from server.monitor.web.serve import Door
    from shared_model.story import Page

PLACE = Path("runs")  # what is shown when nothing is named


@click.command()
@click.argument("target", required=False)
@click.option("--port", default=8787, show_default=True, help="Of the page; 0 takes any that is free.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@click.option("--terminal", is_flag=True, help="In this terminal, without a page; for SSH.")
@click.option("--study", help="The study that the page shows first; with --terminal or https://... it alone.")
@click.option("--home", type=click.Path(file_okay=False, exists=True, path_type=Path),
              help="With https://...: the home of the member who watches, for its certificate.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on; others' needs --cert, --key, and --token-file or --client-ca.")  # fmt: skip
@click.option("--name", "names", multiple=True, help="Host name in the page's address; may be given again.")
@click.option("--cert", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="TLS certificate, PEM.")
@click.option("--key", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="Its key, PEM.")
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path),
              help="What readers must know; made when it is absent.")  # fmt: skip
@click.option("--client-ca", type=click.Path(dir_okay=False, exists=True, path_type=Path),
              help="PEM: readers need a certificate of this authority; a token is not needed then.")  # fmt: skip
@click.option("--reader", "readers", multiple=True,
              help="With --client-ca: common name of a certificate that may read; again for more. Members of a "
              "study read under their names alone.")  # fmt: skip
@click.pass_context
def monitor(
    ctx: click.Context, target: str | None, port: int, no_open: bool, terminal: bool, study: str | None,
    home: Path | None, host: str, names: tuple[str, ...], cert: Path | None, key: Path | None, token_file: Path | None,
    client_ca: Path | None, readers: tuple[str, ...],
) -> None:  # fmt: skip
    """Watch TARGET: a run directory, a folder of runs (default: ./runs), or a coordinator's home.

    A member watches from its own machine, with its certificate, what the coordinator tells it: TARGET is then
    https://HOST:PORT, with --home.

    Nothing can be changed from here, and watching does not slow a study.

    Example:  mammofed monitor runs/quick-20261122-120000
    """
    remote = target is not None and target.startswith("https://")
    if terminal and not remote:
        _terminal(place_of(target), study)
        return
    page: Page | None = None
    if not terminal:
        door = _door(host, port, names, cert, key, token_file, client_ca, readers)
        if not remote:
            _serve(place_of(target), door, study, open_browser=not no_open)
            return
        page = _page(door, study, open_browser=not no_open)
    assert target is not None
    _watch(ctx, target, home, study, page)


def _door(
    host: str, port: int, names: tuple[str, ...], cert: Path | None, key: Path | None, token_file: Path | None,
    client_ca: Path | None, readers: tuple[str, ...],
) -> Door:  # fmt: skip
    from server.monitor.web.readers import Readers
    from server.monitor.web.serve import Door, token_of

    if readers and client_ca is None:
        raise ConfigError("--reader names certificates, and none are asked for", expected="--client-ca FILE beside it")
    token = token_of(token_file) if token_file is not None else None
    those = Readers(ca=client_ca, names=frozenset(readers)) if client_ca is not None else None
    return Door(host=host, port=port, names=names, cert=cert, key=key, token=token, readers=those)


def _serve(place: Path, door: Door, study: str | None, *, open_browser: bool) -> None:
    from server.monitor.admission import with_registry
    from server.monitor.metrics import render
    from server.monitor.places import home_of, rules_of
    from server.monitor.web.runs import Runs
    from server.monitor.web.serve import serve

    rules, machine = rules_of(place), partial(machine_of, place)

    def metrics(views: Sequence[StudyView]) -> bytes:
        there = machine()
        return render([with_alarms(rules.rules, view, there) for view in views], machine=there)

    def say(url: str) -> None:
        click.echo(f"Monitor  {url}   (Ctrl-C ends it; the study goes on)")

    runs = Runs(place, first=study, alarms=lambda view: for_people(with_alarms(rules.rules, view, machine())))
    if study is not None and study not in runs.names():
        raise ConfigError(f"no study {study} is in {place}", expected=f"one of {', '.join(runs.names())[:300]}",
                          remedy="give --study the name of its folder")  # fmt: skip
    if door.readers is not None:
        door = replace(door, readers=with_registry(door.readers, home_of(place)))
    with contextlib.suppress(KeyboardInterrupt):  # it is how a page ends, and no error
        serve(runs, door, say=say, open_browser=open_browser, metrics=metrics)


def _page(door: Door, study: str | None, *, open_browser: bool) -> Page:
    from server.monitor.web.member_page import member_page

    return partial(member_page, door=door, study=study, say=click.echo, open_browser=open_browser)


def _watch(ctx: click.Context, url: str, home: Path | None, study: str | None, page: Page | None) -> None:
    """Hand over to `mammofed site watch`: what a member does is the client's, which a server's file never imports."""
    if home is None:
        raise ConfigError("whose certificate is to be shown to the coordinator?", expected="--home HOME",
                          remedy=f"mammofed monitor {url} --home SITE_HOME")  # fmt: skip
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    site = root.get_command(ctx, "site")
    watch = site.get_command(ctx, "watch") if isinstance(site, click.Group) else None
    if watch is None:
        raise ConfigError("this release has no part of a site", expected="`mammofed site watch`")
    ctx.invoke(watch, home=home, url=url, study=study, page=page)


def _terminal(place: Path, study: str | None) -> None:
    from server.monitor.places import rules_of, runs_in, runs_or_none
    from server.monitor.terminal import Terminal

    runs_in(place)  # says what is wrong, once
    file = rules_of(place)
    terminal = Terminal(lambda: [run for run in runs_or_none(place) if study in (None, run.name)], file=file)
    with contextlib.suppress(KeyboardInterrupt):
        terminal.run(threading.Event())


def place_of(target: str | None) -> Path:
    """The folder to watch.

    Raises:
        ConfigError: nothing was named and there is no `runs`, or what was named is not there.
    """
    if target is None and not PLACE.is_dir():
        raise ConfigError("which study?", found="no folder `runs` here", remedy="`mammofed monitor RUN_DIR`")
    place = PLACE if target is None else Path(target)
    if not place.is_dir():
        raise ConfigError(f"{place} is no folder", expected="a run directory, a folder of them, a coordinator's home")
    return place.resolve()
