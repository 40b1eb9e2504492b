"""`mammofed site status`: a site's own rounds, ledger, egress and last contact; and nothing about others."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from client.cli import site as site_group
from client.deploy.audit_exchange import courier_log
from client.deploy.home import SiteHome
from client.deploy.overview import show, status_of
from client.deploy.own import own_record
from client.deploy.presence import STATUS
from client.deploy.status import CourierStatus, StudyStatus
from client.privacy.ledger import Ledger, LedgerEntry
from client.trainer import record
from shared_model.audit import AuditLog
from shared_model.private_files import make_private_folder, write_private
from shared_model.signing import SigningKey
from tests.client.deploy.test_site_commands import cohort, home

__all__ = ["cohort", "home"]  # fixtures


def audit(folder: Path, name: str, *entries: tuple[str, dict[str, str | int | float]]) -> Path:
    make_private_folder(folder)
    with AuditLog(folder / name, owner="north", key=SigningKey.generate()) as log:
        for kind, fields in entries:
            log.append(kind, **fields)
    return folder / name


def trained(number: int, **more: float) -> tuple[str, dict[str, str | int | float]]:
    return record.TRAINED, {"asked": "train", "study": "pilot", "round": number, "attempt": 1, **more}


def reserve(home: SiteHome) -> None:
    entry = LedgerEntry(group="train", study="pilot", protocol_sha256="ab" * 32, round=1, attempt=1,
                        noise_multiplier=1.3, sample_rate=0.1, steps=5)  # fmt: skip
    Ledger(home.state / "ledger.json").reserve(entry, budget=8.0, delta=1e-5)


def test_before_anything_was_done_there_is_nothing_to_show(home: SiteHome) -> None:
    assert own_record(home) == {"rounds": None, "ledger": None, "egress": None, "words": []}
    assert status_of(home)["courier"]["heard"] is None


def test_own_rounds_come_from_the_trainer_s_audit_log(home: SiteHome) -> None:
    audit(home.state, "audit.jsonl", trained(1, epsilon=2.0, budget=8.0), trained(2, epsilon=3.5, budget=8.0),
          (record.ABSTAINED, {"asked": "train", "study": "pilot", "round": 3}),
          (record.EVALUATED, {"asked": "evaluate", "study": "pilot", "round": 2}),
          (record.TURNED_AWAY, {"code": 33, "words": "another's signature", "unlisted_before": 4}))  # fmt: skip
    rounds = own_record(home)["rounds"]
    pilot = rounds["studies"]["pilot"]
    assert (pilot["trained"], pilot["last_round"], pilot["abstained"], pilot["evaluated"]) == (2, 2, 1, 1)
    assert (pilot["epsilon"], pilot["budget"], rounds["refused"]["count"]) == (3.5, 8.0, 5)


def test_ledger_and_egress_in_figures(home: SiteHome) -> None:
    make_private_folder(home.state)
    reserve(home)
    left = [("released", {"reply_sha256": sha, "bytes": 700, "part": part, "parts": 2})
            for sha in ("aa", "bb") for part in (1, 2)]  # fmt: skip
    audit(home.state, "egress.jsonl", *left, ("repeated", {"bytes": 9}))
    own = own_record(home)
    assert own["ledger"]["reservations"] == own["ledger"]["unsettled"] == 1 and own["ledger"]["limit"] == 8.0
    assert (own["egress"]["replies"], own["egress"]["bytes"]) == (2, 1400)


def test_a_line_that_is_just_being_written_is_none_and_a_changed_one_is_said(home: SiteHome) -> None:
    path = audit(home.state, "audit.jsonl", trained(1), trained(2))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"fields":')
    assert own_record(home)["rounds"]["studies"]["pilot"]["trained"] == 2
    path.write_bytes(whole.replace(b'"round":1', b'"round":9'))
    own = own_record(home)
    assert own["rounds"] is None and "rounds: line 2" in own["words"][0]


def test_another_user_s_records_are_said_to_be_closed(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: SiteHome) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("client.deploy.own._rounds", closed)
    assert own_record(home)["words"] == ["rounds: the trainer's record is not open to this user"]


def test_the_command_shows_all_of_it_and_nobody_else(
    home: SiteHome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    study = StudyStatus(number=3, time=time.time(), round=2, words="round_closed")
    status = CourierStatus(site="north", time=time.time(), stage="ready", connected=True, words="connected",
                           heard=time.time() - 12, studies={"pilot": study})  # fmt: skip
    write_private(home.courier / STATUS, status.model_dump_json().encode())
    audit(home.state, "audit.jsonl", trained(2, epsilon=3.5, budget=8.0))
    reserve(home)
    with courier_log(home.courier, "north"):
        show(status_of(home), as_json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Last contact │ \d+ (s|min) ago", printed)  # how long ago hangs on how busy this machine is
    assert "1 trained, the last is round 2, epsilon 3.50 of 8.00" in printed
    assert "Ledger" in printed and "1 entries, 1 unsettled" in printed
    done = CliRunner().invoke(site_group, ["status", str(home.folder), "--json"])
    assert json.loads(done.output)["own"]["rounds"]["studies"].keys() == {"pilot"}
    assert "south" not in done.output and "patients" not in done.output
