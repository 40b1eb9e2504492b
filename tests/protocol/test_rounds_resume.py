"""Dying anywhere and going on: the resumed study is the undisturbed one to the bit, and no site trains twice for it."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.rounds.checkpoint import checkpoint_path
from server.rounds.events import Event
from server.rounds.journal import Journal
from server.rounds.loop import StudyOutcome, run_study
from shared_model.errors import StorageError
from tests import fake_grid as fake

STRATEGIES = fake.STRATEGIES
TWO_ROUNDS = [{"name": "all", "rounds": 2, "objective": "fusion", "learning_rate": 1.0, "encoder_rate": 1.0}]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


def protocol_of(strategy: str, **changes: object) -> fake.Protocol:
    return fake.make_protocol(**STRATEGIES[strategy], **changes)


def run(grid: fake.FakeGrid, protocol: fake.Protocol, folder: Path, observer=lambda _: None) -> StudyOutcome:  # type: ignore[no-untyped-def]
    return run_study(
        grid=grid, protocol=protocol, run_dir=folder, initial=fake.initial_weights(), observer=observer,
        stop=threading.Event(),
    )  # fmt: skip


def artefacts(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on how often the study was interrupted."""
    paths = [folder / "model.safetensors", *(folder / "checkpoints").glob("*.safetensors")]
    return {path.name: path.read_bytes() for path in paths}


def facts(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """What the journal says, without times and sessions."""
    queries = {
        "rounds": "SELECT round, attempt, state, weights_before, weights_after FROM rounds ORDER BY 1, 2",
        "participation": "SELECT round, attempt, site, outcome, bytes_up FROM participation ORDER BY 1, 2, 3",
        "metrics": "SELECT * FROM metrics ORDER BY 1, 2, 3, 4",
        "reports": "SELECT round, scope, site, weights_sha256, document FROM reports ORDER BY 1, 2, 3",
    }  # fmt: skip
    with sqlite3.connect(f"file:{folder / 'journal.sqlite'}?mode=ro", uri=True) as db:
        return {name: db.execute(query).fetchall() for name, query in queries.items()}


@contextmanager
def killing(entry: int, *, committed: bool) -> Iterator[list[int]]:
    """Kill at the n-th journal entry of this process: just before it is on the disk, or just after."""
    original, count = Journal._transaction, [0]

    @contextmanager
    def transaction(journal: Journal) -> Iterator[None]:
        count[0] += 1
        doomed = count[0] == entry
        with original(journal):
            yield
            if doomed and not committed:
                raise Killed
        if doomed:
            raise Killed

    Journal._transaction = transaction  # type: ignore[method-assign]
    try:
        yield count
    finally:
        Journal._transaction = original  # type: ignore[method-assign]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resume_after_every_closed_round_is_bit_identical(tmp_path: Path, strategy: str) -> None:
    protocol = protocol_of(strategy)
    run(fake.make_grid(protocol), protocol, tmp_path / "undisturbed")
    grid = fake.make_grid(protocol)

    def die(event: Event) -> None:
        if event.kind == "round_closed":
            raise Killed

    for _ in range(protocol.rounds):
        with pytest.raises(Killed):
            run(grid, protocol, tmp_path / "resumed", die)
    assert run(grid, protocol, tmp_path / "resumed").status == "COMPLETE"
    assert artefacts(tmp_path / "resumed") == artefacts(tmp_path / "undisturbed")
    assert facts(tmp_path / "resumed") == facts(tmp_path / "undisturbed")


def test_strategies_differ_and_keep_what_they_need(tmp_path: Path) -> None:
    models, hashes = {}, {}
    for strategy in STRATEGIES:
        protocol = protocol_of(strategy)
        run(fake.make_grid(protocol), protocol, tmp_path / strategy)
        models[strategy] = artefacts(tmp_path / strategy)["round-0004.safetensors"]
        hashes[strategy] = facts(tmp_path / strategy)["rounds"][-1][-1]
    assert b"strategy.m_t.head.weight" in models["fedadam"] and b"strategy." not in models["fedavg"]
    assert b"strategy.momentum_vector.head.weight" in models["fedavgm"]
    assert b"strategy.c_i.ash.head.weight" in models["scaffold"]
    # Of four updates, one cut from each end leaves the middle two, whose mean is the median.
    assert hashes["fedmedian"] == hashes["trimmed_mean"]
    assert len({*hashes.values()}) == len(hashes) - 2  # the term of fedprox acts at sites, and these know none


@pytest.mark.slow
@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
def test_kill_at_every_journal_entry_changes_nothing(tmp_path: Path, committed: bool) -> None:
    protocol = protocol_of("fedadam", training__phases=TWO_ROUNDS)
    with killing(0, committed=False) as entries:
        run(fake.make_grid(protocol), protocol, tmp_path / "undisturbed")
    expected, told = artefacts(tmp_path / "undisturbed"), facts(tmp_path / "undisturbed")
    assert entries[0] > 20
    for entry in range(1, entries[0] + 1):
        grid, folder = fake.make_grid(protocol), tmp_path / f"killed-{entry}"
        with killing(entry, committed=committed), pytest.raises(Killed):
            run(grid, protocol, folder)
        assert run(grid, protocol, folder).status == "COMPLETE", entry
        assert artefacts(folder) == expected and facts(folder) == told, entry
        trained = [count for name in fake.SITES for count in grid.party(name).trained.values()]
        assert trained == [1] * len(trained), entry  # an interrupted round is answered from store, never trained again
        opened = {request.model_dump_json() for request in grid.party("evaluator").measured if request.scope == "test"}
        assert len(opened) == 2, entry  # chosen and initial weights; a repetition is the same request to the byte


@pytest.mark.slow
@given(kills=st.lists(st.tuples(st.integers(1, 14), st.booleans()), min_size=1, max_size=5))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_series_of_kills_changes_nothing(tmp_path: Path, kills: list[tuple[int, bool]]) -> None:
    protocol = protocol_of("fedadam", training__phases=TWO_ROUNDS)
    reference = tmp_path / "reference"
    if not reference.exists():
        run(fake.make_grid(protocol), protocol, reference)
    folder = tmp_path / f"kills-{abs(hash(tuple(kills)))}"
    grid = fake.make_grid(protocol)
    for entry, committed in kills:
        try:
            with killing(entry, committed=committed):
                run(grid, protocol, folder)
        except Killed:
            continue
    assert run(grid, protocol, folder).status == "COMPLETE"
    assert artefacts(folder) == artefacts(reference) and facts(folder) == facts(reference)


@pytest.mark.parametrize("kind", ["model_chosen", "tested", "site_evaluated"])
def test_what_was_measured_at_the_end_is_not_measured_again(tmp_path: Path, kind: str) -> None:
    protocol = protocol_of("fedavg")
    grid = fake.make_grid(protocol)

    def die(event: Event) -> None:
        if event.kind == kind:
            raise Killed

    with pytest.raises(Killed):
        run(grid, protocol, tmp_path, die)
    assert run(grid, protocol, tmp_path).status == "COMPLETE"
    scopes = [request.scope for request in grid.party("evaluator").measured]
    assert scopes.count("selection") == 1 + protocol.rounds and scopes.count("test") == 2
    assert [len(grid.party(name).measured) for name in fake.SITES] == [1, 1, 1, 1]


SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
from server.rounds.loop import run_study
from tests import fake_grid as fake

def die(event):
    if event.kind == sys.argv[2] and event.round == 2:
        os.kill(os.getpid(), signal.SIGKILL)

protocol = fake.make_protocol(federation__strategy="fedadam")
run_study(grid=fake.make_grid(protocol), protocol=protocol, run_dir=Path(sys.argv[1]), initial=fake.initial_weights(),
          observer=die, stop=threading.Event())
"""


@pytest.mark.parametrize("kind", ["site_started", "checkpoint_written"])
def test_a_real_sigkill_changes_nothing(tmp_path: Path, kind: str) -> None:
    protocol = protocol_of("fedadam")
    run(fake.make_grid(protocol), protocol, tmp_path / "undisturbed")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), kind]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2])
    assert killed.returncode == -9
    assert run(fake.make_grid(protocol), protocol, tmp_path / "killed").status == "COMPLETE"
    assert artefacts(tmp_path / "killed") == artefacts(tmp_path / "undisturbed")


def test_lost_checkpoint_of_a_round_that_was_not_closed_is_made_again(tmp_path: Path) -> None:
    protocol = protocol_of("fedadam")
    run(fake.make_grid(protocol), protocol, tmp_path / "undisturbed")
    grid, folder = fake.make_grid(protocol), tmp_path / "damaged"

    def die(event: Event) -> None:
        if event.kind == "checkpoint_written" and event.round == 3:
            raise Killed

    with pytest.raises(Killed):
        run(grid, protocol, folder, die)
    path = checkpoint_path(folder, 3)
    path.write_bytes(path.read_bytes()[:-7])
    assert run(grid, protocol, folder).status == "COMPLETE"
    assert artefacts(folder) == artefacts(tmp_path / "undisturbed")
    with sqlite3.connect(folder / "journal.sqlite") as db:
        assert db.execute("SELECT round FROM events WHERE code = 'checkpoint_lost'").fetchall() == [(3,)]


def test_damaged_checkpoint_of_the_last_closed_round_is_refused_in_words(tmp_path: Path) -> None:
    protocol = protocol_of("fedavg")

    def die(event: Event) -> None:
        if event.kind == "round_closed" and event.round == 2:
            raise Killed

    with pytest.raises(Killed):
        run(fake.make_grid(protocol), protocol, tmp_path, die)
    path = checkpoint_path(tmp_path, 2)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match=r"round-0002\.safetensors is damaged or belongs elsewhere: weights_sha256"):
        run(fake.make_grid(protocol), protocol, tmp_path)


def test_a_lost_journal_does_not_begin_the_study_again(tmp_path: Path) -> None:
    """It would open `test` a second time, and nobody would know."""
    protocol = protocol_of("fedavg")
    assert run(fake.make_grid(protocol), protocol, tmp_path).status == "COMPLETE"
    (tmp_path / "journal.sqlite").unlink()
    with pytest.raises(StorageError, match="knows no round, but later checkpoints are there"):
        run(fake.make_grid(protocol), protocol, tmp_path)


def test_disk_full_at_a_checkpoint_loses_nothing(tmp_path: Path) -> None:
    """The file size limit makes the kernel refuse the write, as a full disk does; the journal is below the limit."""
    ballast = np.arange(300_000, dtype=np.float32)
    start = {**fake.initial_weights(), "ballast": ballast}
    protocol = fake.make_protocol(start, training__phases=TWO_ROUNDS)

    def study(folder: Path, observer=lambda _: None) -> StudyOutcome:  # type: ignore[no-untyped-def]
        return run_study(grid=fake.make_grid(protocol), protocol=protocol, run_dir=folder, initial=start,
                         observer=observer, stop=threading.Event())  # fmt: skip

    study(tmp_path / "undisturbed")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: Event) -> None:
        if event.kind == "round_closed" and event.round == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, hard))

    try:
        with pytest.raises(StorageError, match=r"cannot write .*round-0002.safetensors.*to do: make room on the disk"):
            study(tmp_path / "full", fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    names = sorted(path.name for path in (tmp_path / "full" / "checkpoints").iterdir())
    assert names == ["round-0000.safetensors", "round-0001.safetensors"]  # no half file, no temporary file
    assert study(tmp_path / "full").status == "COMPLETE"
    assert artefacts(tmp_path / "full") == artefacts(tmp_path / "undisturbed")
