"""What `mammofed server status` shows: members, processes, studies; read from the disk, with or without the daemon."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.control.roll import FILE, Present, Sign
from server.deploy.home import CoordinatorHome
from server.deploy.studies import StudyFolder, studies
from server.enrolment.registry import MemberState
from server.monitor.reading import LATEST, read
from shared_model.control import plain
from shared_model.errors import MammoFedError, StorageError
from shared_model.private_files import is_held, read_private
from shared_model.protocol import Protocol

PRESENT_S = 30.0  # a site beats every few seconds


def status_of(home: CoordinatorHome, *, now: float | None = None) -> dict[str, Any]:
    """Everything as plain values; the keys are those of `--json`."""
    now = time.time() if now is None else now
    running = is_held(home.audit_file)
    here, found = _present(home) if running else {}, [_study(study) for study in studies(home)]
    known = {study["protocol_sha256"]: study["study"] for study in found}
    with home.registry() as registry:
        members = [
            {"site": m.member.site, "role": m.member.role.value, "state": m.state.value, "reason": m.reason,
             **_presence(here.get(m.member.site), now, known, counts=running and m.state is MemberState.CONFIRMED)}
            for m in registry.members()
        ]  # fmt: skip
    return {"coordinator": home.settings.name, "daemon": running, "processes": _processes(home),
            "members": members, "studies": found}  # fmt: skip


def show(status: Mapping[str, Any], *, as_json: bool) -> None:
    """Print it for a person or a machine."""
    if as_json:
        click.echo(json.dumps(status, indent=1))
        return
    console = Console()
    running = "runs" if status["daemon"] else "does not run: start `mammofed server serve`"
    console.print(f"Coordinator [bold]{status['coordinator']}[/bold]; its daemon {running}")
    members = Table("Site", "Role", "State", "Here", "Trainer", "Approved", "Words", title="Members",
                    title_justify="left")  # fmt: skip
    for member in status["members"]:
        _row(members, member["site"], member["role"], member["state"], member["here"], member["trainer"],
             ", ".join(member["approved"]), member["words"] or member["reason"])  # fmt: skip
    console.print(members)
    table = Table("Study", "Wanted", "Status", "Rounds", "Words", title="Studies", title_justify="left")
    for study in status["studies"]:
        words = study["sentence"] if study["reason"] in study["sentence"] else f"{study['sentence']}; {study['reason']}"
        rounds = "none: it counts" if study["exploration"] else f"{study['closed']} of {study['rounds']}"
        _row(table, study["study"], study["wanted"], study["status"], rounds, words)
    console.print(table)
    for name, there in status["processes"].items() if status["daemon"] else ():
        if there["starts"] > 1:
            console.print(f"{name} was started {there['starts']} times, and ended with {there['last_exit']}: read "
                          f"link/logs/{name}.log", style="yellow", highlight=False)  # fmt: skip


def _row(table: Table, *cells: str) -> None:
    """A row of what others wrote: their square brackets are no orders to this terminal."""
    table.add_row(*(escape(plain(cell)) for cell in cells))


def _present(home: CoordinatorHome) -> Mapping[str, Sign]:
    try:
        return Present.read(home.run / FILE).members
    except MammoFedError:
        return {}  # absent, or damaged: it is written anew with the next heartbeat


def _presence(
    there: Sign | None, now: float, known: Mapping[str, str], *, counts: bool
) -> dict[str, Any]:
    if there is None or not counts:
        return {"here": "not since the daemon began" if counts else "", "approved": [], "trainer": "", "words": ""}
    ago = now - there.time
    here = "yes" if ago <= PRESENT_S else f"{ago / 60:.0f} min ago" if ago < 7200 else f"{ago / 3600:.0f} h ago"
    approved = [known[sha256] for sha256 in there.approved if sha256 in known]
    return {"here": here, "approved": approved, "trainer": there.trainer.device if there.trainer.up else "down",
            "words": there.words}  # fmt: skip


def _processes(home: CoordinatorHome) -> dict[str, Any]:
    try:
        return dict(json.loads(read_private(home.run / "processes.json")))
    except (StorageError, ValueError):
        return {}  # absent, or damaged: it is written anew with the next change


def _study(study: StudyFolder) -> dict[str, Any]:
    """One study; one that is damaged is shown with what is wrong, beside the others."""
    unknown = {"study": study.name, "wanted": "?", "state": "damaged", "closed": 0, "rounds": 0, "sites": [],
               "exploration": False, "protocol_sha256": "", "folder": str(study.path), "status": "damaged",
               "sentence": ""}  # fmt: skip
    try:
        wanted, (protocol, sha256) = study.wanted(), Protocol.read_kept(study.path / "protocol.json")
        view = read(study.path, LATEST)  # as page, terminal and `mammofed status` say it
        return {
            "study": study.name, "wanted": wanted.wish.value, "state": study.state().value, "closed": study.closed(),
            "rounds": protocol.rounds, "exploration": protocol.exploration is not None,
            "sites": [site.name for site in protocol.federation.sites],
            "protocol_sha256": sha256, "folder": str(study.path), "reason": wanted.reason,
            "status": view.status, "sentence": view.sentence,
        }  # fmt: skip
    except MammoFedError as error:
        return unknown | {"reason": str(error)}
