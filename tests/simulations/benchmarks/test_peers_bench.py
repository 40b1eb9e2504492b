"""The comparison with other frameworks: what is measured of a known process tree, our own row on a minuscule study, and
what is read from the peers' marks and logs. The peers themselves need packages that the tests do not install."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_model.errors import ConfigError, RoundError
from simulations.benchmarks import bench
from simulations.benchmarks.peers import compare, contest, environment, flower, ours, probe
from simulations.benchmarks.peers.contest import FLOWER, OURS, Result
from simulations.benchmarks.peers.ours import Job
from simulations.benchmarks.peers.probe import Measurement, Process

ROOT = Path(__file__).parents[3]
JOB = Job(private=True, sites=2, patients=40, held_out=60, rounds=3)

# A child that leaves a grandchild behind, in a session of its own; both burn 0.2 CPU seconds, and the grandchild stays.
BURN = "import sys, time\nwhile time.process_time() < 0.2: pass\n"
ORPHAN = BURN + "open(sys.argv[1], 'w').write('burnt'); time.sleep(600)"
PARENT = (
    "import os, subprocess, sys, time\n"
    f"child = subprocess.Popen([sys.executable, '-c', {ORPHAN!r}, sys.argv[1]], start_new_session=True)\n"
    + BURN + "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
    "open(sys.argv[1] + '.pid', 'w').write(str(child.pid)); sys.exit(3)"
)  # fmt: skip


def measured(command: list[str], folder: Path, *, limit_s: float = 60.0) -> Measurement:
    """The probe as the bench calls it: a process of its own, because it collects its descendants' orphans."""
    result = folder / "measured.json"
    arguments = [sys.executable, "-m", "simulations.benchmarks.peers.probe", str(result), str(limit_s), "--", *command]
    subprocess.run(arguments, cwd=ROOT, check=True)
    return Measurement(**json.loads(result.read_text()))


def alive(pid: int) -> bool:
    return pid in probe.process_table()


def test_detached_processes_are_counted_and_ended(tmp_path: Path) -> None:
    found = measured([sys.executable, "-c", PARENT, str(tmp_path / "burnt")], tmp_path)
    assert found.exit_code == 3
    assert found.cpu_s >= 0.4  # what both have counted themselves
    assert found.peak_mb > 1 and found.processes >= 1
    assert found.timeline[-1][1] == found.cpu_s and found.wall_s > 0
    assert not alive(int((tmp_path / "burnt.pid").read_text()))


def test_a_command_that_does_not_end_is_ended_at_its_limit(tmp_path: Path) -> None:
    found = measured([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path, limit_s=0.2)
    assert found.exit_code is None


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds 64 MB that nobody shares, and says when it does."""
    code = "import sys; held = b'x' * 64_000_000; print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    yield process
    process.communicate()


def test_memory_is_that_of_the_process(holder: subprocess.Popen[bytes]) -> None:
    assert 64 < probe.memory_mb([holder.pid]) < 128
    assert probe.memory_mb([holder.pid, 2**22 + 1]) < 128  # a process that has ended counts nothing


def test_descendants_are_all_below() -> None:
    table = {pid: Process(parent, 0.0) for pid, parent in {2: 1, 3: 2, 4: 3, 5: 1, 6: 9}.items()}
    assert probe.descendants(table, 2) == {3, 4}
    assert probe.descendants(table, 7) == set()


def test_cpu_between_samples_lies_between_them() -> None:
    found = Measurement(began=100.0, timeline=[(1.0, 2.0), (3.0, 6.0)])
    assert [found.cpu_at(t) for t in (99.0, 100.5, 101.0, 102.0, 103.0, 104.0)] == [0.0, 1.0, 2.0, 4.0, 6.0, 6.0]


@pytest.mark.slow
def test_our_row_on_a_minuscule_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cohorts are made, the study runs under the probe, journal and checkpoint are read; 32 x 32 films."""
    small = ("model.height=32", "model.width=32", "model.spacing_mm=6", "weights=random")
    monkeypatch.setattr(ours, "SAME_WORK", (*(o for o in ours.SAME_WORK if not o.startswith("weights")), *small))
    monkeypatch.setattr(compare, "SAME_AUC", 1.0)
    rows = {row.name: row for row in compare.measure(tmp_path, jobs=[JOB], contestants=[OURS])}
    assert set(rows) == {f"private, {what}: {OURS}" for what in [*compare.UNITS, "AUC at the end"]}
    assert all(row.value > 0 and row.ratio is None for row in rows.values())
    before = rows[f"private, CPU before the first training: {OURS}"].value
    assert before < rows[f"private, CPU: {OURS}"].value
    assert not list(tmp_path.glob("venv-*")), "ours alone installs nothing"


def test_every_weight_is_trained_whatever_the_recipe_freezes() -> None:
    for private in (True, False):
        job = Job(private=private, sites=2, patients=40, held_out=60, rounds=3)
        (phases,) = [o for o in ours.overrides(job, cache=Path("c")) if o.startswith("training.phases=")]
        assert "encoder_rate:1.0" in phases and 'objective:"fusion"' in phases and phases.count("share:1.0") >= 1


def result(*, cpu: float, auc: float = 0.7, sites: int = 2) -> Result:
    timeline = [(0.0, 0.0), (10.0, cpu)]
    return Result(
        measured=Measurement(exit_code=0, wall_s=10.0, cpu_s=cpu, peak_mb=100.0, began=0.0, timeline=timeline),
        began={1: 2.0, 2: 4.0, 3: 6.0}, replies={1: sites, 2: sites, 3: sites}, auc=auc,
    )  # fmt: skip


def test_ratios_are_the_peers_figures_divided_by_ours() -> None:
    rows = {row.name: row for row in compare.rows_of(JOB, {OURS: result(cpu=10.0), FLOWER: result(cpu=5.0)})}
    assert rows["private, CPU: MammoFed"].ratio is None
    peer = rows["private, CPU: Flower"]
    assert (peer.value, peer.ratio, peer.against, peer.met) == (5.0, 0.5, "ours", False)
    assert rows["private, CPU of a round: Flower"].value == pytest.approx(1.0)
    assert rows["private, CPU before the first training: MammoFed"].value == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        (result(cpu=1.0, sites=1), "every site"), (result(cpu=1.0, auc=0.5), "what we trained"),
        (result(cpu=1.0, auc=float("nan")), "what we trained"),
    ],
)  # fmt: skip
def test_a_peer_that_did_something_else_is_no_comparison(peer: Result, words: str) -> None:
    with pytest.raises(RoundError, match=words):
        compare.check(JOB, {OURS: result(cpu=1.0), FLOWER: peer})


def test_marks_and_logs_tell_rounds_and_replies() -> None:
    marks = [
        {"what": "began", "round": 1, "time": 3.0, "site": 0}, {"what": "began", "round": 1, "time": 2.0, "site": 1},
        {"what": "aggregated", "round": 1, "time": 4.0, "replies": 2},
    ]  # fmt: skip
    assert contest.first_trainings(marks) == {1: 2.0}
    assert contest.marked_replies(marks) == {1: 2}
    log = "  Round 0 started. \nx - Aggregated 1/2 results\nx - Aggregated 2/2 results\n Round 1 started.\nx\n"
    assert contest.logged_replies(log) == {1: 2, 2: 0}


def test_flower_starts_from_a_folder_with_nothing_but_its_app(tmp_path: Path) -> None:
    command = flower.command("/somewhere/bin/python", run_dir=tmp_path / "run", out=tmp_path, sites=4)
    assert command[0] == "/somewhere/bin/python" and command[4:6] == [str(tmp_path / "app"), "4"]
    assert {path.name for path in (tmp_path / "app" / "peer").iterdir()} == {
        "__init__.py", "client_app.py", "server_app.py"
    }  # fmt: skip
    assert str(tmp_path / "run") in (tmp_path / "app" / "pyproject.toml").read_text()
    assert flower.environment(sys.executable, out=tmp_path)["FLWR_HOME"].startswith(str(tmp_path))


def test_what_cannot_be_installed_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No matching distribution found for nvflare' >&2; exit 1\n")
    python.chmod(0o700)
    monkeypatch.setattr(environment.sys, "executable", str(python))
    for _ in range(2):  # what was not finished is not taken for a whole one
        with pytest.raises(ConfigError, match=r"cannot install .*No matching .* registry .* leave this section out"):
            environment.peers_python(tmp_path / "folder")


def test_shared_packages_have_the_versions_of_the_project() -> None:
    pins = {line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = {line for line in environment.REQUIREMENTS.read_text().splitlines() if "==" in line}
    assert {line for line in wanted - pins if not line.startswith("nvflare==")} == set()
    assert not any("nvflare" in line for line in pins)
    assert "nvflare" not in (ROOT / "pyproject.toml").read_text().replace('"nvflare.*"', "")  # mypy may know its name


def test_the_section_runs_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def module(name: str) -> object:
        asked.append(name)
        raise OSError("not now")

    monkeypatch.setattr(bench.importlib, "import_module", module)
    with pytest.raises(Exception, match="not every section"):
        bench.run_bench(json_path=None, only=[])
    assert len(asked) == len(bench.SECTIONS) - len(bench.ON_REQUEST)
    assert not any(section in name for name in asked for section in bench.ON_REQUEST)
