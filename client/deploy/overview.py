"""What `mammofed site status` shows; read from the disk, so it works whether or not anything runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.deploy.home import SiteHome
from client.deploy.own import own_record
from client.deploy.policy_file import Policy
from client.deploy.presence import STATUS
from client.deploy.status import CourierStatus
from client.trainer.client import listens
from shared_model.control import plain
from shared_model.errors import ConfigError, MammoFedError
from shared_model.figures import bytes_in_words
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
        "courier": _courier(home), "studies": studies, "studies_words": words, "own": own_record(home),
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
    table.add_row("Last contact", _ago(courier.get("heard")))
    for notice in courier["notices"]:
        table.add_row("", f"[yellow]{escape(plain(notice))}[/yellow]")
    table.add_row("Trainer", "serves" if status["trainer"] else f"does not run: {escape(status['trainer_words'])}")
    for name, study in status["studies"].items():
        last = courier["studies"].get(name, {})
        table.add_row(f"Study {name}", f"{study['standing']}, round {last.get('round', 0)} of {study['rounds']}; "
                      f"{escape(last.get('words', '')) or 'not begun'}")  # fmt: skip
    for name, words in _own_rows(status["own"]):
        table.add_row(escape(plain(name)), escape(plain(words)))
    if not status["studies"]:
        table.add_row("Studies", escape(status["studies_words"]) or "none proposed")
    console.print(table)


def _own_rows(own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of what this site itself has done, out of its own records."""
    rounds, ledger, egress = own["rounds"], own["ledger"], own["egress"]
    for name, study in (rounds or {"studies": {}})["studies"].items():
        known = study["epsilon"] is not None and study["budget"] is not None
        spent = f", epsilon {study['epsilon']:.2f} of {study['budget']:.2f}" if known else ""
        abstained = f", abstained {study['abstained']} times" if study["abstained"] else ""
        yield (f"Rounds of {name}",
               f"{study['trained']} trained, the last is round {study['last_round']}{abstained}{spent}; "
               f"{study['last'][:19]} UTC")  # fmt: skip
    if rounds and rounds["refused"]["count"]:
        refused = rounds["refused"]
        yield "Refused", f"{refused['count']} messages, last {refused['last'][:19]} UTC: {refused['words']}"
    if ledger:
        limit = "no limit of its own" if ledger["limit"] is None else f"epsilon limit {ledger['limit']:g}"
        yield "Ledger", (f"{ledger['reservations']} entries, {ledger['unsettled']} unsettled, {limit}; "
                         "`mammofed site ledger show` reckons what is spent")  # fmt: skip
    if egress:
        size = bytes_in_words(egress['bytes'])
        yield "Left here", (f"{egress['replies']} replies, {size}, last {egress['last'][:19]} "
                            "UTC; `mammofed site egress` lists every value")  # fmt: skip
    for words in own["words"]:
        yield "", words


def _ago(heard: float | None) -> str:
    if heard is None:
        return "never"
    ago = max(0.0, time.time() - heard)
    return f"{ago:.0f} s ago" if ago < 120 else f"{ago / 60:.0f} min ago" if ago < 7200 else f"{ago / 3600:.0f} h ago"


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
        return {"runs": False, "connected": False, "words": "never connected", "notices": [], "studies": {},
                "heard": None}  # fmt: skip
    stale = found.is_stale(time.time()) or not is_held(home.courier / "audit.jsonl")  # the courier holds its log
    return {"runs": not stale, "connected": found.connected and not stale, "words": "" if stale else found.words,
            "heard": found.heard,
            "notices": list(found.notices),
            "studies": {name: study.model_dump() for name, study in found.studies.items()}}  # fmt: skip
