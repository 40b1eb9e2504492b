"""What `mammofed site status` shows; read from the disk, so it works whether or not anything runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.deploy.home import Policy, SiteHome
from client.deploy.presence import STATUS
from client.deploy.status import CourierStatus
from client.trainer.client import listens
from shared_model.control import plain
from shared_model.errors import ConfigError, MammoFedError
from shared_model.fingerprint import six_words
from shared_model.private_files import is_held

TAIL_BYTES = 8192


def status_of(home: SiteHome) -> dict[str, Any]:
    """Everything as plain values; the keys are those of `--json`."""
    from client.trainer.consent import proposals, standing
    from client.trainer.site import release

    identity = home.identity()
    try:
        studies = {name: {"standing": standing(home, signed.protocol), "rounds": signed.protocol.rounds,
                          "protocol_sha256": signed.sha256}
                   for name, signed in proposals(home, release=release()).items()}  # fmt: skip
    except MammoFedError as error:
        studies = {}
        words = str(error)
    else:
        words = ""
    there = identity.standing()
    return {
        "site": identity.settings.site, "role": identity.settings.role.value,
        "coordinator": f"{identity.settings.host}:{identity.settings.port}",
        "certificate": there.stage.value, "certificate_words": there.words, "words": identity.words(six_words),
        "trainer": listens(home.socket), "trainer_words": _why_not(home),
        "courier": _courier(home), "studies": studies, "studies_words": words,
    }  # fmt: skip


def show(status: Mapping[str, Any], *, as_json: bool) -> None:
    """Print it for a person or a machine."""
    if as_json:
        click.echo(json.dumps(status, indent=1))
        return
    console = Console()
    table = Table(show_header=False, title=f"{status['site']} ({status['role']})", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("Coordinator", status["coordinator"])
    table.add_row("Certificate", escape(f"{status['certificate']}: {status['certificate_words']}"))
    if status["certificate"] == "enrolling":
        for use, words in status["words"].items():
            table.add_row(f"  read aloud: {use}", words)
    courier = status["courier"]
    table.add_row("Courier", "runs" if courier["runs"] else "does not run: start `mammofed site join`")
    table.add_row("Line", escape(plain(courier["words"])))
    for notice in courier["notices"]:
        table.add_row("", f"[yellow]{escape(plain(notice))}[/yellow]")
    table.add_row("Trainer", "serves" if status["trainer"] else f"does not run: {escape(status['trainer_words'])}")
    for name, study in status["studies"].items():
        last = courier["studies"].get(name, {})
        table.add_row(f"Study {name}", f"{study['standing']}, round {last.get('round', 0)} of {study['rounds']}; "
                      f"{escape(last.get('words', '')) or 'not begun'}")  # fmt: skip
    if not status["studies"]:
        table.add_row("Studies", escape(status["studies_words"]) or "none proposed")
    console.print(table)


def _why_not(home: SiteHome) -> str:
    """Why a trainer does not serve, as far as this user may read it."""
    log = home.trainer / "logs" / "trainer.log"
    try:
        if not (home.trainer / "coordinator.json").exists():
            return "nothing was approved here yet"
        Policy.read(home.policy_file)
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "start `mammofed site join`"
    except ConfigError as error:  # it was ended because of it
        return str(error)
    if lines and " ERROR " in lines[-1]:
        return lines[-1].split(" ERROR ", 1)[1]
    return f"start `mammofed site join`; its words are in {log}"


def _courier(home: SiteHome) -> dict[str, Any]:
    found = CourierStatus.read(home.courier / STATUS)
    if found is None:
        return {"runs": False, "connected": False, "words": "never connected", "notices": [], "studies": {}}
    stale = found.is_stale(time.time()) or not is_held(home.courier / "audit.jsonl")  # the courier holds its log
    return {"runs": not stale, "connected": found.connected and not stale, "words": "" if stale else found.words,
            "heard": found.heard,
            "notices": list(found.notices),
            "studies": {name: study.model_dump() for name, study in found.studies.items()}}  # fmt: skip
