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
from shared_model.audit.file import is_written
from shared_model.protocol import Protocol

PRESENT_S = 30.0  # a site beats every few seconds


def status_of(home: CoordinatorHome, *, now: float | None = None) -> dict[str, Any]:
    """Everything as plain values; the keys are those of `--json`."""
    now = time.time() if now is None else now
    running = is_written(home.folder / "audit.jsonl")
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
        members.add_row(member["site"], member["role"], member["state"], member["here"], member["trainer"],
                        ", ".join(member["approved"]), escape(member["words"] or member["reason"]))  # fmt: skip
    console.print(members)
    table = Table("Study", "Wanted", "State", "Rounds", "Words", title="Studies", title_justify="left")
    for study in status["studies"]:
        table.add_row(study["study"], study["wanted"], study["state"], f"{study['closed']} of {study['rounds']}",
                      study["reason"])  # fmt: skip
    console.print(table)


def _present(home: CoordinatorHome) -> Mapping[str, Sign]:
    path = home.run / FILE
    return Present.read(path).members if path.exists() else {}


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
    path = home.run / "processes.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _study(study: StudyFolder) -> dict[str, Any]:
    wanted, protocol = study.wanted(), Protocol.read(study.path / "protocol.json")
    return {
        "study": study.name, "wanted": wanted.wish.value, "state": study.state().value, "closed": study.closed(),
        "rounds": protocol.rounds, "sites": [site.name for site in protocol.federation.sites],
        "protocol_sha256": protocol.sha256, "folder": str(study.path), "reason": wanted.reason,
    }  # fmt: skip
