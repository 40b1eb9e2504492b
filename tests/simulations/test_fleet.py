"""What `mammofed simulate fleet` makes of its samples; the deployment itself is played by command."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from shared_model.certificates import Role
from shared_model.errors import ConfigError, RoundError
from simulations.engine.deployment.rehearsal import Party
from simulations.fleet import command
from simulations.fleet.command import run_fleet
from simulations.fleet.processes import OTHER, Sight, Table, disk_bytes, role_in
from simulations.fleet.show import Round, Setup, report_of, show
from simulations.fleet.study import shared
from simulations.fleet.trend import MIB, SMALL, slope, trend
from simulations.fleet.watch import Sample, Watch

SETUP = Setup(sites=2, trainers=1, start_s=30.0, quorum=1, machine={"cores": "2"})


# --- arithmetic ---


def test_a_slope_is_not_moved_by_a_third_of_wild_samples() -> None:
    points = [(float(t), 10.0 + 2.0 * t) for t in range(30)]
    wild = random.Random(1).sample(range(30), 9)
    for at in wild:
        points[at] = (points[at][0], 1e6)
    assert slope(points) == pytest.approx(2.0, abs=0.7)
    assert slope([]) == slope([(1.0, 5.0)]) == 0.0


@pytest.mark.parametrize(
    ("mib_a_minute", "flat"), [(0.0, True), (0.3, True), (0.45, False), (5.0, False), (-2.0, True)]
)
def test_thirteen_minutes_are_flat_within_four_mib_or_five_percent(mib_a_minute: float, flat: bool) -> None:
    points = [(5.0 * i, 70 * MIB + mib_a_minute * MIB * 5 * i / 60) for i in range(181)]
    found = trend(points, since=120.0)
    assert found is not None and found.seconds == 780.0
    assert found.allowed == max(SMALL, 0.05 * found.first)
    assert found.an_hour == pytest.approx(60 * mib_a_minute * MIB)
    assert found.flat is flat


def test_a_step_that_stays_is_growth_though_most_slopes_are_none() -> None:
    points = [(float(t), 100.0 * MIB + (20 * MIB if t > 640 else 0)) for t in range(0, 900, 5)]
    found = trend(points, since=120.0)
    assert found is not None and found.an_hour == 0.0 and not found.flat


def test_what_happens_before_everything_is_warm_does_not_count() -> None:
    points = [(float(t), min(t, 120.0) * MIB) for t in range(0, 900, 5)]
    found = trend(points, since=120.0)
    assert found is not None and found.flat and found.first == found.last == 120 * MIB
    assert trend(points, since=895.0) is None


# --- processes ---


@pytest.mark.parametrize(
    ("line", "role"),
    [("/v/python -P /x/shared_model/guard.py /v/flower-superlink --port 1", "guards"),
     ("/v/python /v/mammofed server serve /home", "daemon"), ("/v/python /v/flower-superlink --port 1", "SuperLink"),
     ("/v/python /v/flower-superexec", "SuperExec"), ("/v/python /v/flwr-serverapp --token", "ServerApp"),
     ("/v/python /v/flwr ls", OTHER)],
)  # fmt: skip
def test_a_coordinators_process_is_known_by_its_command_line(line: str, role: str) -> None:
    assert role_in(line) == role


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_tree_is_counted_with_the_cpu_of_those_that_have_ended() -> None:
    burn = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
    outer = ("import subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1]])\n"
             "there = subprocess.Popen(['sleep', '60'])\nprint(flush=True)\nsys.stdin.read()\n"
             "there.kill()\n")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", outer, burn.format(0.4)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        sight = Table.look().party(process.pid, memory=True)
        process.stdin.close()
    assert sight.processes == 2 and sight.cpu_s >= 0.3  # the kernel counts ticks of 10 ms, each number rounded down
    assert 0 < sight.own <= sight.total and sight.resident >= MIB


def test_a_folders_size_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(b"123")
    (tmp_path / "a" / "b" / "y").write_bytes(b"12345")
    assert (disk_bytes(tmp_path), disk_bytes(tmp_path / "a" / "x"), disk_bytes(tmp_path / "none")) == (8, 3, 0)


# --- report ---


def _samples(*, grow: int = 0, count: int = 121, cpu: float = 1.0) -> list[Sample]:
    return [
        Sample(
            time=1000.0 + 5 * i, closed=i // 4, load=2.0, memory=i % 6 == 0,
            roles={"daemon": Sight(processes=1, resident=80 * MIB + grow * i, cpu_s=cpu * i),
                   "SuperLink": Sight(processes=1, resident=150 * MIB, cpu_s=2 * cpu * i)},
            parties={"hub": Sight(total=200 * MIB, cpu_s=4 * cpu * i), "site-001": Sight(total=90, cpu_s=cpu * i),
                     "site-002": Sight(total=110, cpu_s=3 * cpu * i), "evaluator": Sight(cpu_s=0.0),
                     "trainers-1": Sight(total=500, cpu_s=cpu * i)},
            disk={"journal": 1000 + 100 * (i // 4)},
        )
        for i in range(count)
    ]  # fmt: skip


def _rounds(count: int = 30, missing: int = 0) -> list[Round]:
    return [Round(number=n + 1, attempts=1, opened=1000.0 + 20 * n, contributed=2 - (n < missing), asked=2)
            for n in range(count)]  # fmt: skip


def test_a_report_has_slopes_costs_and_participation() -> None:
    report = report_of(SETUP, Watch(idle=_samples(count=13, cpu=0.1), work=_samples()), _rounds(missing=3))
    assert report.seconds == 600.0 and report.round_s == 20.0
    assert report.memory["daemon"] is not None and report.memory["daemon"].flat
    assert report.memory["ServerApp"] is None
    assert report.cpu["coordinator"].work == pytest.approx(4 / 5) and report.cpu["coordinator"].a_round == 16.0
    assert report.cpu["coordinator"].idle == pytest.approx(0.4 / 5)
    assert report.cpu["a site, without trainer"].a_round == 8.0
    assert report.disk["journal"] == (4000, 100.0)
    assert (report.site_bytes, report.trainer_bytes, report.total_bytes) == (100.0, 500, 200 * MIB)
    assert json.loads(json.dumps(report.plain()))["flat"] == {"daemon": True, "SuperLink": True, "SuperExec": None,
                                                             "ServerApp": None, "guards": None}  # fmt: skip
    said = io.StringIO()
    show(report, Console(file=said, width=140))
    assert "30 rounds closed" in said.getvalue() and "27 with every site" in said.getvalue()
    assert "participation 95.0 %" in said.getvalue() and "1 processes" in said.getvalue()


def test_growth_is_an_error_that_names_the_process() -> None:
    report = report_of(SETUP, Watch(work=_samples(grow=MIB)), _rounds())
    with pytest.raises(RoundError, match="daemon") as error:
        command._judge(report, early="")
    assert "SuperLink" not in str(error.value)
    command._judge(report_of(SETUP, Watch(work=_samples()), _rounds()), early="")
    with pytest.raises(RoundError, match="before its time"):
        command._judge(report_of(SETUP, Watch(work=_samples()), _rounds()), early="INCOMPLETE")


def test_a_report_of_no_rounds_is_a_report() -> None:
    said = io.StringIO()
    show(report_of(SETUP, Watch(work=_samples(count=4)), []), Console(file=said, width=140))
    assert "No round was closed" in said.getvalue()


def test_sites_share_trainers_and_the_evaluator_has_its_own() -> None:
    everybody = [Party(name=f"site-{n}", role=Role.SITE, cohort=Path(), salt="s", test_fraction=0.2, private_only=False,
                       device="cpu") for n in range(5)]  # fmt: skip
    judge = Party(name="evaluator", role=Role.EVALUATOR, cohort=Path(), salt="s", test_fraction=0.5, private_only=False,
                  device="cpu")  # fmt: skip
    found = shared([*everybody, judge], trainers=2)
    assert [party.trainer[-2:] for party in found] == ["-1", "-2", "-1", "-2", "-1", ""]


@pytest.mark.parametrize(("sites", "minutes"), [(1, 1.0), (65, 1.0), (4, 0.0)])
def test_bounds(sites: int, minutes: float) -> None:
    with pytest.raises(ConfigError, match="out of bounds"):
        run_fleet(sites=sites, minutes=minutes, trainers=None, idle_s=0.0, json_path=None, keep=None)
