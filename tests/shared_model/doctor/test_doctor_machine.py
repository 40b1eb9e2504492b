"""Each check of a machine in each of its colours, from plain values; and that what is fetched is what is there."""

from __future__ import annotations

import os
import socket
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shared_model.doctor import Check, Level, machine
from shared_model.doctor.machine import GIB
from shared_model.errors import DoctorError, MammoFedError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("free", "level"), [(0.5, "red"), (2, "amber"), (8, "green")])
def test_memory(free: float, level: str) -> None:
    check = machine.memory(int(free * GIB), red_below=GIB, amber_below=4 * GIB, what="the trainer")
    assert (check.level, f"{free:.1f} GiB free for the trainer" in check.words) == (level, True)


def test_memory_is_what_a_container_leaves(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  16000000 kB\nMemAvailable:   8388608 kB\n")
    assert machine.available_memory(tmp_path / "meminfo", tmp_path) == 8 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory(tmp_path / "meminfo", tmp_path) == 8 * GIB
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert machine.available_memory(tmp_path / "meminfo", tmp_path) == 2 * GIB


@pytest.mark.parametrize(
    ("free", "files", "read_only", "level", "words"),
    [(0.5, 9, False, "red", "0.5 GiB"), (2, 9, False, "amber", "2.0 GiB"), (8, 9, False, "green", "8.0 GiB"),
     (8, 0, False, "red", "inode"), (8, 9, True, "red", "read-only")],
)  # fmt: skip
def test_disk(free: float, files: int, read_only: bool, level: str, words: str) -> None:
    check = machine.disk(int(free * GIB), files_free=files, read_only=read_only, red_below=GIB, amber_below=5 * GIB,
                         what="the ledger")  # fmt: skip
    assert check.level == level and words in check.words


def test_the_disk_of_a_folder_that_is_not_there_yet_is_its_parent_s(tmp_path: Path) -> None:
    check = machine.disk_of(tmp_path / "a" / "b", red_below=0, amber_below=0, what="it")
    found = os.statvfs(tmp_path)
    assert check.level is Level.GREEN
    # others write to this disk meanwhile
    assert float(check.words.split()[0]) == pytest.approx(found.f_bavail * found.f_frsize / GIB, rel=0.5)


@pytest.mark.parametrize(
    ("ahead", "doubt", "level"),
    [(0.4, 0.1, "green"), (-1.9, 0, "green"), (2.5, 0.1, "amber"), (-4.9, 0.1, "amber"), (5.5, 0.1, "red"),
     (5.5, 2.0, "amber"), (-5.5, 0.1, "red"), (-5.5, 2.0, "amber"), (-299, 0.5, "red")],
)  # fmt: skip
def test_a_clock_that_was_compared(ahead: float, doubt: float, level: str) -> None:
    check = machine.clock(ahead, doubt_s=doubt, disciplined=None)
    assert check.level == level and f"{abs(ahead):.1f} s" in check.words
    assert ("NTP" in check.remedy) == (level != "green")


@pytest.mark.parametrize(("disciplined", "level"), [(True, "green"), (None, "green"), (False, "amber")])
def test_a_clock_that_was_not(disciplined: bool | None, level: str) -> None:
    assert machine.clock(None, doubt_s=0, disciplined=disciplined).level == level


def test_the_kernel_is_asked_about_its_clock() -> None:
    assert machine.clock_is_disciplined() in (True, False, None)


def nobody(*arguments: Any, **options: Any) -> Any:
    raise socket.gaierror(-2, "Name or service not known")


def test_a_name_that_is_not_known_is_red_but_not_behind_a_proxy() -> None:
    unknown = machine.name_of("hub.example", name="dns", title="DNS", lookup=nobody)
    assert unknown.level is Level.RED and "hub.example" in unknown.words
    assert machine.name_of("hub.example", name="dns", title="DNS", lookup=nobody, proxied=True).level is Level.GREEN
    known = machine.name_of("localhost", name="dns", title="DNS")
    assert known.level is Level.GREEN and "127.0.0.1" in known.local and "127.0.0.1" not in known.words


GOOD = {"flwr": "1.41.0", "torch": "2.13.0+cpu", "opacus": "1.6.0"}
PINS = {"flwr": "1.41.0", "torch": "2.13", "opacus": "1.6.0"}


@pytest.mark.parametrize(
    ("changes", "python", "level", "words"),
    [({}, (3, 11), "green", "Flower"), ({"flwr": "1.42.0"}, (3, 12), "red", "Flower 1.41.0"),
     ({"opacus": None}, (3, 11), "red", "absent: opacus"), ({}, (3, 10), "red", "Python 3.11"),
     ({"torch": "2.14.1"}, (3, 11), "amber", "another torch")],
)  # fmt: skip
def test_versions(changes: dict[str, str | None], python: tuple[int, int], level: str, words: str) -> None:
    check = machine.versions({**GOOD, **changes}, expected=PINS, python=python)
    assert check.level == level
    assert words in check.words or level == "green"


def test_what_is_installed_here_is_what_the_release_pins() -> None:
    assert machine.versions_here().level is Level.GREEN
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"flwr[simulation]=={machine.TESTED['flwr']}" in listed
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert all(pins[name].startswith(beginning) for name, beginning in machine.TESTED.items())


def test_a_program_is_found_beside_its_python() -> None:
    assert machine.program("flower-supernode") == str(Path(sys.executable).with_name("flower-supernode"))
    assert machine.program("no-such-program-anywhere") is None


@pytest.mark.parametrize(("days", "level"), [(-2, "red"), (0, "red"), (5, "amber"), (50, "green")])
def test_days_left(days: float, level: str) -> None:
    check = machine.days_left(days, name="ca", title="CA", what="the CA", amber_below=10, to_do="call")
    assert check.level == level


def test_a_fault_without_a_cure_cannot_be_said() -> None:
    with pytest.raises(AssertionError):
        Check(name="x", title="X", level=Level.RED, words="broken")


def test_the_exit_code_is_stable_and_differs_from_others() -> None:
    def tree(kind: type[MammoFedError]) -> list[type[MammoFedError]]:
        return [kind, *(lower for child in kind.__subclasses__() for lower in tree(child))]

    assert DoctorError.exit_code == 80
    assert [kind for kind in tree(MammoFedError) if kind.exit_code == 80] == [DoctorError]
