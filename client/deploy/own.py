"""What a site itself has done: rounds by study, privacy spent, what left the building; for `mammofed site status`.

Read from the trainer's own records (audit log, ledger, list of what left), each line's chain checked, while the trainer
may be writing. Nothing of anybody else is in them. Where the roles are users of their own, only the trainer's user may
read them: then it says so, and the rest of the status stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.deploy.home import SiteHome
from client.deploy.policy_file import Policy
from client.privacy.egress_log import RELEASED, files_of
from client.privacy.ledger import Ledger
from client.trainer.record import ABSTAINED, EVALUATED, LOG_FILE, TRAINED, TURNED_AWAY
from shared_model.audit.entries import Entry, read_entries
from shared_model.errors import AuditError, MammoFedError


def own_record(home: SiteHome) -> dict[str, Any]:
    """rounds: by study, with the epsilon that the trainer stated last; ledger: what it holds, without reckoning, which
    takes seconds (`site ledger show` does); egress: replies and bytes that left.

    Each is None where there is no such record yet; `words` says what could not be read.
    """
    words: list[str] = []
    found: dict[str, Any] = {}
    for name, part in (("rounds", _rounds), ("ledger", _ledger), ("egress", _egress)):
        try:
            found[name] = part(home)
        except PermissionError:
            found[name] = None
            words.append(f"{name}: the trainer's record is not open to this user")
        except (MammoFedError, OSError) as error:
            found[name] = None
            words.append(f"{name}: {error}")
    return {**found, "words": words}


def _rounds(home: SiteHome) -> dict[str, Any] | None:
    """By study: rounds trained, the last one, its time, how often it abstained; and when a message was refused last."""
    path = home.state / LOG_FILE
    if not path.exists():
        return None
    studies: dict[str, dict[str, Any]] = {}
    refused: dict[str, Any] = {"count": 0, "last": None, "words": ""}
    for entry in _entries(path):
        if entry.kind == TURNED_AWAY:
            refused = {"count": refused["count"] + 1 + _whole(entry, "unlisted_before"), "last": entry.time,
                       "words": str(entry.fields.get("words", ""))}  # fmt: skip
        if entry.kind not in (TRAINED, EVALUATED, ABSTAINED):
            continue
        study = studies.setdefault(str(entry.fields.get("study", "")), {
            "trained": 0, "last_round": 0, "last": "", "abstained": 0, "evaluated": 0, "epsilon": None, "budget": None,
        })  # fmt: skip
        key = {TRAINED: "trained", EVALUATED: "evaluated", ABSTAINED: "abstained"}[entry.kind]
        study[key] += 1
        study["last"] = entry.time
        if entry.kind == TRAINED:
            study["last_round"] = max(study["last_round"], _whole(entry, "round"))
        if entry.fields.get("asked") == "train" and "epsilon" in entry.fields:
            study |= {"epsilon": entry.fields["epsilon"], "budget": entry.fields.get("budget")}
    return {"studies": studies, "refused": refused}


def _ledger(home: SiteHome) -> dict[str, Any] | None:
    path = home.state / "ledger.json"
    if not home.state.exists():
        return None
    records = Ledger(path).records()
    if not records:
        return None
    return {"limit": Policy.read(home.policy_file).epsilon_limit, "reservations": len(records),
            "unsettled": sum(record["state"] == "reserved" for record in records),
            "last": records[-1]["reserved_at"]}  # fmt: skip


def _egress(home: SiteHome) -> dict[str, Any] | None:
    replies, size, last = set[str](), 0, ""
    there = [path for path in files_of(home.state) if path.exists()]
    if not there:
        return None
    for path in there:
        for entry in _entries(path):
            if entry.kind != RELEASED:
                continue
            last = entry.time
            sha256 = str(entry.fields.get("reply_sha256"))
            if sha256 not in replies:  # a reply of many values takes several lines
                replies.add(sha256)
                size += _whole(entry, "bytes")
    return {"replies": len(replies), "bytes": size, "last": last}


def _entries(path: Path) -> Iterator[Entry]:
    """Entries of a log that may be written meanwhile.

    Raises:
        AuditError: a line was changed. OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        try:
            yield from read_entries(stream)
        except AuditError as error:
            if "not ended" not in error.problem:  # a line that is about to be finished is none yet
                raise


def _whole(entry: Entry, name: str) -> int:
    value = entry.fields.get(name)
    return value if type(value) is int else 0
