"""The registry under several processes, kills and damage; its steps are tested through enrolment."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from server.enrolment.registry import MemberState, Registry
from shared_model.certificates import Member, Role
from shared_model.errors import EnrolmentError, StorageError
from tests.enrolled import Clock

ROOT = Path(__file__).resolve().parents[3]
OPEN = (
    "import pathlib, sys, os\nfrom server.enrolment.registry import Registry\n"
    "registry = Registry(pathlib.Path(sys.argv[1]))\n"
)


def redeem(registry: Registry, invite: str = "a" * 64, keys: bytes = b"1", site: str = "north") -> MemberState:
    return registry.redeem(invite, request=keys, node=b"node" + keys, tls=b"tls" + keys, csr=b"csr" + keys).state


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "r")


def test_the_files_are_their_owner_s_alone(registry: Registry) -> None:
    registry.invite(Member("north"), "a" * 64, expires=9e9)
    files = list(registry.path.parent.iterdir())
    assert {path.name for path in files} >= {"registry.sqlite", "registry.sqlite-wal"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_two_processes_redeem_one_invitation_and_one_wins(registry: Registry) -> None:
    registry.invite(Member("north"), "a" * 64, expires=9e9)
    code = OPEN + (
        "print(flush=True); sys.stdin.readline(); keys = sys.argv[2].encode()\n"
        "try:\n    registry.redeem('a' * 64, request=keys, node=b'n' + keys, tls=b't' + keys, csr=keys)\n"
        "except Exception as error:\n    sys.exit(type(error).__name__ == 'EnrolmentError')\n"
        "sys.exit(7)"
    )
    racing = [
        subprocess.Popen([sys.executable, "-c", code, registry.path.parent, str(number)], cwd=ROOT,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for number in range(3)
    ]  # fmt: skip
    for process in racing:
        assert process.stdout is not None
        process.stdout.readline()
    for process in racing:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    ended = sorted(process.wait() for process in racing)
    for process in racing:
        process.communicate()
    assert ended == [1, 1, 7]


def test_killed_in_the_middle_of_a_step_nothing_of_it_stays(registry: Registry) -> None:
    registry.invite(Member("north"), "a" * 64, expires=9e9)
    code = OPEN + (
        "real = registry._known\n"
        "registry._known = lambda site: os.kill(os.getpid(), 9)\n"  # the last thing before the commit
        "registry.redeem('a' * 64, request=b'1', node=b'n', tls=b't', csr=b'c')"
    )
    ended = subprocess.run([sys.executable, "-c", code, registry.path.parent], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert registry.members() == []
    assert redeem(registry) is MemberState.PENDING, "the invitation was not used up"


def test_a_change_by_anybody_is_seen_and_looking_is_no_change(registry: Registry) -> None:
    before = registry.version()
    registry.members()
    assert registry.version() == before
    with Registry(registry.path.parent) as other:
        assert registry.version() == before
        other.invite(Member("north"), "a" * 64, expires=9e9)
    after = registry.version()
    assert after != before
    redeem(registry)
    assert registry.version() not in (before, after)


def test_it_is_there_after_closing(tmp_path: Path) -> None:
    clock = Clock(1000.0)
    with Registry(tmp_path, clock=clock) as registry:
        registry.invite(Member("north", Role.EVALUATOR), "a" * 64, expires=2000)
        redeem(registry)
        registry.confirm("north", node=b"node1", tls=b"tls1")
    with Registry(tmp_path) as registry:
        (there,) = registry.members()
        assert (there.member, there.state, there.since) == (Member("north", Role.EVALUATOR), "confirmed", 1000.0)


def test_keys_that_changed_since_they_were_shown_are_not_confirmed(registry: Registry) -> None:
    registry.invite(Member("north"), "a" * 64, expires=9e9)
    redeem(registry)
    for node, tls in ((b"node1", b"tls2"), (b"node2", b"tls1")):
        with pytest.raises(EnrolmentError, match="other keys by now"):
            registry.confirm("north", node=node, tls=tls)
    assert registry.member("north").state is MemberState.PENDING


@pytest.mark.parametrize("place", [0, 30, 5000])
def test_damage_is_said_and_nobody_is_let_in(registry: Registry, place: int) -> None:
    registry.invite(Member("north"), "a" * 64, expires=9e9)
    registry.close()
    data = bytearray(registry.path.read_bytes())
    data[place : place + 4000] = random.Random(place).randbytes(4000)  # the same at each run
    registry.path.write_bytes(data)
    said = pytest.raises(StorageError, match=r"damaged|cannot use|another schema")
    with said, Registry(registry.path.parent) as again:
        again.members()
        again.invited("a" * 64)
        again.invite(Member("south"), "b" * 64, expires=9e9)


def test_another_schema_is_refused(registry: Registry) -> None:
    registry.close()
    with sqlite3.connect(registry.path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="another schema"):
        Registry(registry.path.parent)


def test_a_closed_registry_admits_nobody(registry: Registry) -> None:
    registry.close()
    with pytest.raises(StorageError):
        registry.members()
    with pytest.raises(StorageError):
        registry.version()


def test_another_process_that_comes_and_goes_takes_nothing_away_from_one_that_opened_the_registry_twice(
    tmp_path: Path,
) -> None:
    """Closing any handle of a file drops all POSIX locks of a process on it: SQLite elsewhere would then take itself
    for the last user of the file, and remove the write-ahead log that this process goes on writing."""
    with Registry(tmp_path) as first, Registry(tmp_path) as second:
        second.invite(Member("north", Role.SITE), "a" * 64, expires=9e9)
        subprocess.run([sys.executable, "-c", OPEN + "registry.members(); registry.close()", str(tmp_path)], cwd=ROOT,
                       check=True)  # fmt: skip
        first.invite(Member("south", Role.SITE), "b" * 64, expires=9e9)
        seen = subprocess.run(
            [sys.executable, "-c", OPEN + "print(registry.invited('b' * 64).site)", str(tmp_path)],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
    assert seen.stdout.strip() == "south"
