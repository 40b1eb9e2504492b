"""The view of a study: what it says in each state, that it reads only what is new, and what it never shows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from server.control.roll import Present, Sign
from server.monitor import rows, sums
from server.monitor.alarms import evaluate
from server.monitor.cells import auc_of, outcome_of
from server.monitor.outlook import Outlook
from server.monitor.reading import parse_cursor, read
from server.monitor.rules import MonitorFile
from server.monitor.standing import Facts, clock_words, seconds_words, standing
from server.monitor.view import PhasesView, StudyView, from_json, merge, to_json
from server.rounds.journal import Journal
from server.rounds.states import RoundStep, StudyStep
from shared_model.certificates import Role
from shared_model.control import TrainerState
from shared_model.errors import ProtocolError
from shared_model.protocol import Protocol
from simulations.benchmarks.staged_run import StagedRun, staged_protocol

SITES = ("east", "north", "south", "west")
BEGAN = 1_800_000_000.0


def staged(folder: Path, *, rounds: int = 6, **changes: object) -> StagedRun:
    run = StagedRun(folder / "run", staged_protocol(sites=SITES, rounds=rounds, **changes), started=BEGAN)  # type: ignore[arg-type]
    run.begin()
    return run


def seen(run: StagedRun, since: str | None = None, *, after: float = 1.0) -> StudyView:
    return read(run.run_dir, since, now=run.now + after)


def test_a_running_study_says_round_sites_and_end(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
        run.round(2)
        run.open(3)
        view = seen(run, after=5.0)
    assert (view.status, view.round, view.closed, view.planned) == ("running", 3, 2, 6)
    # two rounds of 11 s are closed, the third is 5 s old: 4 rounds of 11 s less 5 s are left
    assert view.ends == pytest.approx(run.now + 5.0 + 44.0 - 5.0)
    assert view.sentence == f"round 3 of 6, 4 of 4 sites asked, ends about {clock_words(view.ends or 0, run.now)}"
    assert view.due == SITES and {site.now for site in view.sites} == {"asked"}
    assert view.best is not None and view.best.round == 2 and not view.best.chosen
    assert view.best.auc.low is not None and view.best.auc.low < view.best.auc.value < (view.best.auc.high or 0)
    assert [r.number for r in view.rounds] == [0, 1, 2, 3] and view.phase == "fusion"


def test_of_each_update_that_was_seen_norm_and_cosine_are_told(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1, outcomes={"west": ("failed", "absent: gone")})
        run.open(2)
        run.collect(2)
        first, second = seen(run).rounds[1:]
    assert {cell.site: (cell.norm, cell.cosine) for cell in first.cells} == {
        "east": (1.5, 0.25), "north": (1.5, 0.25), "south": (1.5, 0.25), "west": (None, None)}  # fmt: skip
    assert {(cell.norm, cell.cosine) for cell in second.cells} == {(None, None)}, "it is measured when all are there"


def test_of_who_has_not_answered_no_bytes_are_counted(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.open(1)
        (cell, *_), (site, *_) = seen(run).rounds[-1].cells, seen(run).sites
        assert (cell.outcome, cell.bytes_up, cell.bytes_down) == ("asked", None, None)
        assert (site.bytes_up, site.bytes_down) == (None, None)
        run.collect(1, outcomes={"west": ("late", "late: nothing")})
        run.close(1)
        run.open(2)
        view = seen(run)
    assert {cell.bytes_up for cell in view.rounds[-1].cells} == {None}, "of the round that is open"
    assert [site.bytes_up for site in view.sites] == [400_000] * 3 + [0], "nothing came, and that is known"


def test_where_a_round_s_seconds_went_is_told_by_site(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1, outcomes={"west": ("late", "late: nothing")})
        run.open(2)
        run.collect(2, outcomes={"east": ("late", "late: nothing")})
        first, second = seen(run).rounds[1:]
        again = seen(run, seen(run).cursor)
        run.open(3)
        fresh = seen(run, again.cursor)
    cells = {cell.site: cell.phases for cell in first.cells}
    assert cells["north"] == PhasesView(wait=0.5, load=1.5, train=4.5, mask=0.0, send=pytest.approx(1.2),
                                        round_trip=pytest.approx(7.7))  # fmt: skip
    assert cells["west"] is None and {c.site: c.phases for c in second.cells}["east"] is None
    assert {site.name: site.phases is None for site in again.sites} == {
        "east": True, "north": False, "south": False, "west": False}, "of the newest answers"  # fmt: skip
    assert again.rounds == () and [site.phases for site in fresh.sites] == [site.phases for site in again.sites]


def test_a_journal_of_an_earlier_release_has_no_phases_and_is_read_all_the_same(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
    with sqlite3.connect(run.run_dir / "journal.sqlite") as db:
        db.execute("DROP TABLE phases")
    view = seen(run)
    assert view.missing == () and view.closed == 1
    assert {cell.phases for cell in view.rounds[1].cells} == {site.phases for site in view.sites} == {None}
    assert from_json(to_json(view)) == view


def test_each_end_has_its_own_word(tmp_path: Path) -> None:
    ends = {StudyStep.COMPLETE: "complete", StudyStep.GIVE_UP: "incomplete", StudyStep.STOP: "incomplete"}
    for step, word in ends.items():
        with staged(tmp_path / step.value, rounds=1) as run:
            if step is StudyStep.COMPLETE:
                run.round(1)
            run.finish(step, "too few sites" if step is StudyStep.GIVE_UP else "")
        view = seen(run)
        assert view.status == word
        assert ("too few sites" in view.sentence) == (step is StudyStep.GIVE_UP)
    complete = read(tmp_path / "complete" / "run")
    assert complete.best is not None and complete.best.chosen and complete.test["fused"].low == 0.85


def test_a_lock_on_a_file_of_that_number_on_another_disk_is_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = staged(tmp_path)
    run.die()
    number = (run.run_dir / "journal.lock").stat().st_ino
    (tmp_path / "locks").write_text(f"1: FLOCK  ADVISORY  WRITE 1 ff:ff:{number} 0 EOF\n")
    monkeypatch.setattr("server.monitor.presence.LOCKS", tmp_path / "locks")
    assert seen(run).status == "failed"


def test_a_study_whose_process_died_has_failed(tmp_path: Path) -> None:
    run = staged(tmp_path)
    run.round(1)
    run.open(2)
    assert seen(run).status == "running"
    run.die()
    view = seen(run, after=90.0)
    assert view.status == "failed" and not view.alive
    assert view.sentence.startswith("failed: its process is gone, 90 s after the last step in round 2 of 6")


def test_nothing_yet_is_preparing_only_while_somebody_works(tmp_path: Path) -> None:
    run = StagedRun(tmp_path / "run", staged_protocol(sites=SITES, rounds=2), started=BEGAN)
    assert seen(run).status == "preparing"
    run.die()
    assert seen(run).status == "failed"
    assert read(tmp_path / "nowhere").status == "failed"


def test_a_round_that_takes_far_too_long_is_stalled(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
        run.open(2)
        view = seen(run, after=300.0)
    assert view.status == "stalled" and view.due == SITES and view.ends is None
    assert view.sentence == "stalled: round 2 is open for 5 min, rounds before took 11 s, deadline in 5 min"


def test_an_evaluation_is_a_sign_of_life_of_the_evaluator(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        with run.journal.entry():
            run.note("site_present", "evaluator, cpu", site="evaluator")
        run.round(1)
        (evaluator,) = seen(run).evaluators
    assert evaluator.heard == run.now


def test_waiting_for_lost_sites_is_stalled_with_the_loops_own_words(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.open(1)
        run.collect(1, outcomes=dict.fromkeys(SITES[:3], ("failed", "error: gone")))
        with run.journal.round_step(1, 1, RoundStep.MISS_QUORUM):
            run.note("attempt_failed", severity="warning", code="quorum", number=1, attempt=1)
        with run.journal.entry():
            run.note("waiting", "east, north not there, 2 needed for the quorum; waiting at most 600 s",
                     severity="warning", code="outage", number=1)  # fmt: skip
            run.note("site_present", "site, cpu", site="east")
        view = seen(run)
        assert view.status == "stalled" and "east, north not there" in view.sentence
        run.open(1, attempt=2)
        assert seen(run).status == "running"


def deployed(folder: Path, run: StagedRun, signs: dict[str, float], *, down: tuple[str, ...] = ()) -> None:
    """What a coordinator's home shows of its sites. signs: seconds since each one's last heartbeat; down: whose trainer
    does not answer its courier."""
    home = run.run_dir / "deployment" / "hub"
    (home / "run").mkdir(parents=True, exist_ok=True)
    (home / "coordinator.json").write_text("{}")
    members = {
        name: Sign(role=Role.SITE, time=run.now - gone, clock_ahead=0.2, release="0.1.0",
                   trainer=TrainerState(up=name not in down, device="cuda:0")) for name, gone in signs.items()
    }  # fmt: skip
    path = home / "run" / "present.json"
    path.write_bytes(Present(time=run.now, members=members).encode())
    path.chmod(0o600)


def test_a_silent_site_is_named_in_ten_seconds_and_seen_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.monitor.presence._held", lambda path: True)  # the daemon's lock, too
    with staged(tmp_path) as run:
        run.round(1)
        run.open(2)
        run.now += 40.0
        deployed(tmp_path, run, {"east": 2.0, "north": 40.0, "south": 1.0, "west": 4.9})
        view = seen(run, after=0.0)
        assert view.sentence == "stalled: north silent for 40 s, the round needs 3 of 4, deadline in 9 min"
        north = view.site("north")
        assert north is not None and north.present is False and north.silent_s == 40.0 and north.device == "cuda:0"
        deployed(tmp_path, run, dict.fromkeys(SITES, 9.0))
        assert {site.silent_s for site in seen(run, after=0.0).sites} == {9.0}
        deployed(tmp_path, run, dict.fromkeys(SITES, 1.0))
        assert seen(run, after=0.0).status == "running"
        assert all(site.present for site in seen(run, after=0.0).sites)


def test_a_trainer_that_hangs_behind_a_courier_that_beats_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.monitor.presence._held", lambda path: True)
    with staged(tmp_path) as run:
        with run.journal.entry():
            run.note("site_present", "evaluator, cpu", site="evaluator")
        run.round(1)
        signs = dict.fromkeys(SITES, 1.0) | {"evaluator": 1.0}
        deployed(tmp_path, run, signs, down=("north",))
        assert seen(run, after=0.0).status == "running", "nobody waits for it"
        run.open(2)
        view = seen(run, after=0.0)
        assert view.sentence == (
            "stalled: the trainer of north does not answer, the round needs 3 of 4, deadline in 10 min"
        )
        north = view.site("north")
        assert north is not None and north.present and north.silent_s is None
        assert [(alarm.rule, alarm.text) for alarm in evaluate(MonitorFile.read().rules, view)] == [
            ("silent_site", "north is there, and its trainer does not answer")]  # fmt: skip
        deployed(tmp_path, run, signs)
        assert seen(run, after=0.0).status == "running"
        run.collect(2)
        with run.journal.round_step(2, 1, RoundStep.AGGREGATE):
            pass
        deployed(tmp_path, run, signs, down=("evaluator",))
        assert seen(run, after=0.0).sentence == (
            "stalled: the trainer of evaluator does not answer, which measures the model"
        )


def test_a_silent_evaluator_is_named_while_it_should_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.monitor.presence._held", lambda path: True)
    with staged(tmp_path) as run:
        deployed(tmp_path, run, dict.fromkeys(SITES, 1.0))
        (unheard,) = enrolled(run.run_dir, "held-out", lambda: seen(run, after=0.0).evaluators)
        assert (unheard.name, unheard.present, unheard.heard, unheard.silent_s) == ("held-out", False, None, None)
        with run.journal.entry():
            run.note("site_present", "evaluator, cpu", site="evaluator")
        run.open(1)
        run.collect(1)
        with run.journal.round_step(1, 1, RoundStep.AGGREGATE):
            pass
        run.now += 40.0
        signs = dict.fromkeys(SITES, 1.0)
        deployed(tmp_path, run, signs | {"evaluator": 40.0})
        view = seen(run, after=0.0)
        assert view.status == "stalled"
        assert view.sentence == "stalled: evaluator silent for 40 s, which measures the model"
        (evaluator,) = view.evaluators  # the study has heard of this one, so that the other is another study's
        assert (evaluator.name, evaluator.present, evaluator.device) == ("evaluator", False, "cuda:0")
        deployed(tmp_path, run, signs | {"evaluator": 1.0})
        assert seen(run, after=0.0).status == "running"


def enrolled(folder: Path, evaluator: str, look: Callable[[], Any]) -> Any:
    """What `look` finds while the coordinator's registry has this evaluator, and one that is not confirmed."""
    registry = folder / "deployment" / "hub" / "registry" / "registry.sqlite"
    registry.parent.mkdir()
    with sqlite3.connect(registry) as db:
        db.execute("CREATE TABLE members (site TEXT, role TEXT, state TEXT)")
        db.executemany("INSERT INTO members VALUES (?, ?, ?)", [
            (evaluator, "evaluator", "confirmed"), ("new", "evaluator", "pending"), ("north", "site", "confirmed")
        ])  # fmt: skip
    found = look()
    registry.unlink()
    return found


def test_on_one_machine_a_trainer_that_beats_no_more_is_named(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
        run.open(2)
        run.now += 40.0  # later than anything that the journal heard of them
        alive = run.run_dir / "logs" / "alive"
        alive.mkdir(parents=True)
        for name in SITES:
            (alive / name).touch()
            os.utime(alive / name, (run.now, run.now - (14.0 if name == "east" else 1.0)))
        well = seen(run, after=0.0)
        assert well.status == "running" and all(site.present and site.silent_s is None for site in well.sites)
        view = seen(run, after=2.0)
        assert view.sentence.startswith("stalled: east silent for 16 s, the round needs 3 of 4")
        east, north = view.site("east"), view.site("north")
        assert east is not None and north is not None and (east.present, north.present) == (False, True)
        (alive / "east").touch()
        os.utime(alive / "east", (run.now + 2, run.now + 2))
        assert seen(run, after=2.0).status == "running"


def test_only_what_is_new_is_read_and_merges_to_the_whole(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        view = seen(run)
        for number in range(1, 4):
            run.open(number)
            view = merge(view, seen(run, view.cursor))
            run.collect(number, outcomes={"west": ("late", "late: nothing by the deadline")} if number == 2 else None)
            new = seen(run, view.cursor)
            assert [r.number for r in new.rounds] == [number] and not new.whole
            view = merge(view, new)
            run.close(number)
        assert seen(run, seen(run).cursor).rounds == ()
        whole = seen(run)
        merged = merge(view, seen(run, view.cursor))
        assert merged == whole
        rows._HEADS.clear()
        sums._KNOWN.clear()
        assert seen(run) == whole  # what is kept between looks is what a first look finds
        assert from_json(to_json(whole)) == whole


def test_a_cursor_of_another_journal_brings_everything(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
        for cursor in ("999.3", "3.999", "x", "-1.2", "1", "", "²."):
            view = seen(run, cursor)
            assert view.whole and len(view.rounds) == 2
    assert parse_cursor("12.7") == (12, 7)


@pytest.mark.parametrize(("journalled", "shown"), [
    (("contributed", ""), "contributed"), (("late", "late: nothing by the deadline"), "late"),
    (("refused", "norm: norm of the update 9.1, the protocol allows 2"), "rejected"),
    (("refused", "identity: the reply is for another round"), "refused"),
    (("failed", "absent: no node stands for this site"), "absent"), (("failed", "error: code 10: died"), "failed"),
    (("abstained", "round 9 would bring the patients of group `train` to epsilon 8.200"), "out_of_budget"),
    (("abstained", "its policy ends at round 5"), "abstained"), (("not_sampled", ""), "not_sampled"),
])  # fmt: skip
def test_outcomes_are_told_apart(journalled: tuple[str, str], shown: str) -> None:
    assert outcome_of(*journalled)[0] == shown


def test_every_rejection_of_the_gate_is_called_rejected() -> None:
    import re

    from server.aggregation import gate

    codes = set(re.findall(r'Rejection\(code="(\w+)"', Path(gate.__file__).read_text()))
    assert codes and all(outcome_of("refused", f"{code}: words")[0] == "rejected" for code in codes)


def test_a_site_that_is_out_of_budget_has_dropped_out(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
        run.round(2, outcomes={"west": ("abstained", "round 2 would bring the patients to epsilon 8.2")})
        west, east = seen(run).site("west"), seen(run).site("east")
    assert west is not None and west.privacy is not None and west.now == "out_of_budget"
    assert west.privacy.last_round == 1 and "it drops out after round 1 of 6" in west.privacy.words
    assert east is not None and east.privacy is not None and east.privacy.last_round is None
    assert east.privacy.projected == pytest.approx(8.0, rel=0.01)


def test_the_outlook_agrees_with_the_accountant() -> None:
    from client.privacy.accountant import Account

    protocol = staged_protocol(sites=SITES, rounds=60)

    def true(rounds: int, sigma: float) -> float:
        return Account().add(noise_multiplier=sigma, sample_rate=0.1, steps=5 * rounds).epsilon(delta=1e-5)

    values = protocol.model_dump(mode="json")
    values["privacy"]["epsilon"] = end = true(60, 1.3)
    protocol = type(protocol).create(values)
    outlook = Outlook.of(protocol)
    for number in (5, 20, 40):
        spent, fresh = outlook.spent(number, 5 * number)
        assert fresh
        projected, last = outlook.project(true(number, 1.3), budget=end, spent=spent, next_round=number + 1, fresh=True)
        assert projected == pytest.approx(end, rel=0.01) and last is None
        # a site whose own limit is what 50 rounds cost drops out after round 50
        limit = true(50, 1.3)
        _, last = outlook.project(true(number, 1.3), budget=limit, spent=spent, next_round=number + 1, fresh=True)
        assert last is not None and abs(last - 50) <= 2
    # a site that was in a study of 60 rounds before: the truth is 120 rounds' epsilon
    projected, last = outlook.project(end, budget=2 * end, spent=0.0, next_round=1, fresh=False)
    assert projected == pytest.approx(true(120, 1.3), rel=0.05)


def test_no_count_of_a_site_and_no_woman_is_in_a_view(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
        with run.journal.entry():
            run.journal.metrics(1, "site", "west", {"n": 7.0, "positives": 3.0, "auc": 0.9})
            run.journal.report(1, "site", "west", weights="a", document={"n": 7, "positives": 3}, seconds=1.0,
                               bytes_up=1, bytes_down=1)  # fmt: skip
        text = to_json(seen(run)).decode()
    found = json.loads(text)
    keys = set()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            keys.update(value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(found)
    assert not keys & {"n", "positives", "thresholds", "scores", "labels", "pseudonym", "patient"}
    assert {site["patients"] for site in found["sites"]} == {100}  # rounded, of the protocol


def test_reading_writes_nothing_and_needs_no_right_to(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
    before = {path.name: path.stat().st_mtime_ns for path in run.run_dir.iterdir()}
    journal = run.run_dir / "journal.sqlite"
    content = journal.read_bytes()
    assert seen(run).closed == 1
    left = {path.name for path in run.run_dir.iterdir()} - {"journal.sqlite-wal", "journal.sqlite-shm"}
    assert left == before.keys() and journal.read_bytes() == content


def test_a_reader_in_the_middle_of_a_look_does_not_stop_the_writer(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        reader = sqlite3.connect(f"file:{run.run_dir / 'journal.sqlite'}?mode=ro", uri=True, isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM rounds").fetchone() == (0,)
        run.round(1)  # raises where the reader held a lock that a writer needs
        assert reader.execute("SELECT count(*) FROM rounds").fetchone() == (0,)
        reader.close()
        assert seen(run).closed == 1


def test_what_is_damaged_is_told(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
    Journal(run.run_dir / "journal.sqlite", lambda _: None).__exit__(None, None, None)
    shutil.copytree(run.run_dir, tmp_path / "torn")
    (tmp_path / "torn" / "journal.sqlite").write_bytes(b"no database at all" * 100)
    view = read(tmp_path / "torn")
    assert view.status == "failed" and "the journal cannot be read" in view.sentence
    (run.run_dir / "protocol.json").write_text("{}")
    view = seen(run)
    assert view.closed == 1 and view.missing and "not a valid protocol" in view.sentence
    assert view.status == "unknown" and "the journal alone says: failed" in view.sentence
    assert "resume" not in view.sentence  # which refuses such a protocol


# --- run directories of other versions of MammoFed ---


def freeze(run_dir: Path, values: dict[str, Any]) -> str:
    """Write a protocol as the version that had these fields did; its hash."""
    sha256 = hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (run_dir / "protocol.json").write_text(json.dumps({"protocol": values, "sha256": sha256}, indent=2))
    return sha256


@pytest.fixture
def earlier(tmp_path: Path) -> tuple[StagedRun, dict[str, Any]]:
    """A study that is complete, under a protocol without two fields of today; and its values."""
    with staged(tmp_path, rounds=3) as run:
        for number in (1, 2, 3):
            run.round(number)
        run.finish(StudyStep.COMPLETE)
    values = json.loads((run.run_dir / "protocol.json").read_text())["protocol"]
    del values["exploration"], values["federation"]["secure_sum"]
    journal(run.run_dir, freeze(run.run_dir, values))
    return run, values


def journal(run_dir: Path, sha256: str) -> None:
    """Make the journal say that it was written under this protocol."""
    with closing(sqlite3.connect(run_dir / "journal.sqlite")) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'protocol_sha256'", (json.dumps(sha256),))


def test_a_run_of_an_earlier_version_is_read_as_it_was_frozen(earlier: tuple[StagedRun, dict[str, Any]]) -> None:
    run, values = earlier
    view = read(run.run_dir)
    assert (view.status, view.planned, view.missing) == ("complete", 3, ())
    assert view.protocol_sha256 == freeze(run.run_dir, values) != run.protocol.sha256
    assert view.sentence == "complete: all 3 rounds are closed, the held-out test is opened"
    with pytest.raises(ProtocolError, match="frozen by another version of MammoFed"):
        Protocol.read(run.run_dir / "protocol.json")  # what runs is read as strictly as ever


def test_a_protocol_that_was_changed_is_not_called_complete(earlier: tuple[StagedRun, dict[str, Any]]) -> None:
    run, _ = earlier
    path = run.run_dir / "protocol.json"
    path.write_text(path.read_text().replace('"deadline_s": 600.0', '"deadline_s": 6000.0'))
    view = read(run.run_dir)
    assert view.status == "unknown" and view.planned == 0 and view.best is None
    assert view.sentence.startswith("unknown: protocol.json was changed after it was frozen: it hashes to ")
    assert "; the journal alone says: complete: 3 rounds are closed, the held-out test is opened" in view.sentence


def test_a_protocol_of_another_run_is_found_by_the_journals_hash(earlier: tuple[StagedRun, dict[str, Any]]) -> None:
    run, values = earlier
    freeze(run.run_dir, values | {"seed": 77})
    view = read(run.run_dir)
    assert view.status == "unknown" and "another protocol than this journal was written under" in view.sentence
    (run.run_dir / "protocol.json").unlink()
    assert read(run.run_dir).sentence.startswith("unknown: there is no protocol.json; the journal alone says")


def test_a_version_whose_fields_are_gone_is_said_to_be_another(earlier: tuple[StagedRun, dict[str, Any]]) -> None:
    run, values = earlier
    journal(run.run_dir, freeze(run.run_dir, values | {"a_field_of_then": 1}))
    view = read(run.run_dir)
    assert view.status == "unknown" and "frozen by another version of MammoFed" in view.sentence


def test_a_run_of_an_earlier_version_that_is_open_is_resumed_by_that_one(tmp_path: Path) -> None:
    with staged(tmp_path) as run:
        run.round(1)
    values = json.loads((run.run_dir / "protocol.json").read_text())["protocol"]
    del values["exploration"]
    journal(run.run_dir, freeze(run.run_dir, values))
    view = read(run.run_dir)
    assert view.status == "failed"
    assert view.sentence.endswith("frozen by another version of MammoFed, and that one alone resumes it")


def test_words_and_intervals() -> None:
    assert [seconds_words(s) for s in (0.4, 40, 540, 9000, 200_000)] == ["0 s", "40 s", "9 min", "2.5 h", "2.3 days"]
    # Hanley and McNeil's example: AUC 0.893 of 51 normal and 58 abnormal cases has a standard error of 0.032
    auc = auc_of(0.893, 109, 58)
    assert auc.low == pytest.approx(0.812, abs=0.01) and auc.high == pytest.approx(0.942, abs=0.01)
    assert auc_of(1.0, 100, 50).low is None and auc_of(0.8, None, None).low is None and auc_of(0.8, 5, 5).low is None


@pytest.mark.parametrize(("changes", "word", "sentence"), [
    ({"state": "rounds"}, "running", "the women of 4 sites are counted in one sum, which needs 3 of them"),
    ({"state": "tested"}, "running", "the counts of the sites together are there"),
    ({"state": "COMPLETE"}, "complete", "complete: the counts of the sites together are there"),
    ({"state": "STOPPED"}, "incomplete", "stopped by request before there were counts; resume goes on"),
    ({"state": "rounds", "alive": False, "stepped": 95.0}, "failed",
     "failed: its process is gone, 5 s after the last step in the start; resume goes on"),
])  # fmt: skip
def test_an_exploration_never_speaks_of_rounds_or_a_test(changes: dict[str, Any], word: str, sentence: str) -> None:
    facts: dict[str, Any] = {
        "now": 100.0, "planned": 1, "closed": 0, "round": 0, "quorum": 3, "sites": 4, "asked": 0, "round_open": False,
        "round_opened": None, "deadline": None, "ends": None, "round_s": None, "contributed": 0, "silent": (),
        "waits": "", "reason": "", "alive": True, "preparing": False, "deployed": False, "daemon": False, "wish": "",
        "stepped": None, "activity": "", "explores": True,
    }  # fmt: skip
    assert standing(Facts(**{**facts, **changes})) == (word, sentence)
