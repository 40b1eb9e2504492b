"""The socket between courier and trainer: chunks, bounds, names, and what is said when the other side is not there."""

from __future__ import annotations

import grp
import os
import socket as sockets
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.privacy import egress
from client.trainer import wire
from client.trainer.client import call
from client.trainer.server import listening
from shared_model.errors import ConfigError, MessageError, TrainerError
from shared_model.messages import CHUNK_BYTES, MAX_FRAME_BYTES
from tests.enrolled import HANG_S


def passed(data: bytes) -> egress.Released:
    """As if the egress gate had let it go; it is tested elsewhere."""
    return egress.Released(data, seal=egress._SEAL)


class Echo:
    """Stands where a site's service stands: answers with what it was asked."""

    device = "cpu"

    def __init__(self, prefix: bytes = b"") -> None:
        self.prefix = prefix

    def exchange(self, data: bytes, *, wanted: Callable[[], bool]) -> bytes:
        assert wanted()
        return passed(self.prefix + data)


class Slow(Echo):
    """Answers only when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.release, self.done = threading.Event(), threading.Event(), threading.Event()
        self.still_wanted = True

    def exchange(self, data: bytes, *, wanted: Callable[[], bool]) -> bytes:
        self.entered.set()
        self.release.wait(HANG_S)
        # The end of the caller's patience reaches this side a moment later than the caller.
        self.still_wanted = self.waits(wanted)
        self.done.set()
        return passed(data)

    def waits(self, wanted: Callable[[], bool]) -> bool:
        """Whether somebody waits for the answer."""
        return wanted()


class Abandoned(Slow):
    """Its caller has gone, and it gives that news time to come."""

    def waits(self, wanted: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + HANG_S
        while wanted() and time.monotonic() < deadline:
            time.sleep(0.02)
        return wanted()


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mf-") as folder:  # pytest's own folders are too long for a socket's name
        yield Path(folder) / "t.sock"


def serve(services: Mapping[str, Any], place: Path) -> Any:
    return listening(services, place)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 3])
def test_bytes_come_back_whole_whatever_their_size(place: Path, size: int) -> None:
    data = os.urandom(size)
    with serve({"north": Echo(b"n"), "south": Echo(b"s")}, place):
        assert call(place, "south", data, HANG_S) == b"s" + data


@settings(max_examples=30)
@given(st.binary(max_size=3000), st.integers(1, 700))
def test_join_undoes_any_cutting_and_never_holds_more_than_the_limit(data: bytes, piece: int) -> None:
    parts = [data[i : i + piece] for i in range(0, len(data), piece)]
    assert wire.join(parts, limit=3000) == data
    if data:
        with pytest.raises(MessageError, match="too large"):
            wire.join(parts, limit=len(data) - 1)


def test_chunks_are_bounded() -> None:
    parts = list(wire.chunks(bytes(2 * CHUNK_BYTES + 5)))
    assert [len(p) for p in parts] == [CHUNK_BYTES, CHUNK_BYTES, 5]
    assert list(wire.chunks(b"")) == [b""]


def test_reading_stops_at_the_bound_and_not_at_the_end() -> None:
    """A sender without end is cut off after the bound, not when memory is gone."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(CHUNK_BYTES)

    with pytest.raises(MessageError, match="too large"):
        wire.join(endless())
    assert taken == MAX_FRAME_BYTES // CHUNK_BYTES + 1


def test_an_oversized_chunk_is_refused_by_the_transport(place: Path) -> None:
    with serve({"north": Echo()}, place), grpc.insecure_channel(wire.address(place)) as channel:
        exchange = channel.stream_stream(f"/{wire.SERVICE}/{wire.METHOD}")
        with pytest.raises(grpc.RpcError) as caught:
            list(exchange(iter([bytes(CHUNK_BYTES + 2048)]), metadata=((wire.SITE_KEY, "north"),), timeout=HANG_S))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_site_that_is_not_hosted_is_refused(place: Path) -> None:
    with serve({"north": Echo()}, place), pytest.raises(TrainerError, match="does not host west"):
        call(place, "west", b"x", HANG_S)


def test_nobody_listening_is_said_at_once(place: Path) -> None:
    with pytest.raises(TrainerError, match="cannot be reached"):
        call(place, "north", b"x", HANG_S)


def test_time_over_is_said_and_the_trainer_learns_that_nobody_waits(place: Path) -> None:
    slow = Abandoned()
    with serve({"north": slow}, place):
        patience = 1.5
        while not slow.entered.is_set():  # on a busy machine the time may be over before the trainer hears of the call
            with pytest.raises(TrainerError, match="did not answer in time"):
                call(place, "north", b"x", patience)
            patience *= 2
        slow.release.set()
        assert slow.done.wait(2 * HANG_S)
    assert not slow.still_wanted


def test_one_busy_site_does_not_silence_another(place: Path) -> None:
    slow = Slow()
    with serve({"north": slow, "south": Echo()}, place):
        waiting = threading.Thread(target=lambda: call(place, "north", b"x", HANG_S))
        waiting.start()
        assert slow.entered.wait(HANG_S)
        assert call(place, "south", b"y", HANG_S) == b"y"
        slow.release.set()
        waiting.join(HANG_S)


def test_the_socket_is_for_this_user_only_and_goes_away(place: Path) -> None:
    with serve({"north": Echo()}, place):
        assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0
    assert not place.exists()


def test_the_socket_may_be_for_one_group_and_nobody_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = grp.getgrgid(os.getegid())
    with listening({"north": Echo()}, place, group=mine.gr_name):  # type: ignore[dict-item]
        status = place.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, mine.gr_gid)
        assert call(place, "north", b"x", HANG_S) == b"x"
    with pytest.raises(ConfigError, match="no such group"), listening({}, place, group="no-group-of-this-name"):
        pass

    def forbidden(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chown", forbidden)
    with pytest.raises(ConfigError, match="a member of it"), listening({}, place, group=mine.gr_name):
        pass
    assert not place.exists()


def test_a_socket_left_by_a_killed_trainer_is_replaced_and_a_file_is_not(place: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(place))
    with serve({"north": Echo()}, place):
        assert call(place, "north", b"x", HANG_S) == b"x"
    place.write_text("somebody's file")
    with pytest.raises(ConfigError, match="something else"), serve({"north": Echo()}, place):
        pass
    assert place.read_text() == "somebody's file"


@pytest.mark.parametrize("path", [Path("relative.sock"), Path("/tmp/" + "x" * 120)])
def test_a_socket_path_that_the_kernel_would_refuse_is_refused_in_words(path: Path) -> None:
    with pytest.raises(ConfigError, match="trainer socket"):
        wire.address(path)


def test_the_caller_imports_neither_torch_nor_flower() -> None:
    code = "import client.trainer.client, sys; print(sorted({'torch', 'flwr', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
