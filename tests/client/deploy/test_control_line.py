"""The line to the control service over bad networks: through a hospital's proxy, cut, half-open, slow, doubled."""

# ruff: noqa: SIM117  (a line stands inside the world that it is tested in)

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.deploy.control import ControlLine
from client.deploy.identity import SiteIdentity
from client.deploy.proxy import Proxy as HospitalProxy
from client.deploy.tunnel import TunnelLimits
from server.enrolment.enrol_door import EnrolLimits
from shared_model.control import WatchRequest
from shared_model.errors import CertificateError, ControlError, MammoFedError
from simulations.faults.proxy import MBIT, Fault, Proxy
from tests.controlled import Hub, beat, in_a_thread
from tests.enrolled import HANG_S


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path)
    with hub.open():
        yield hub


@contextmanager
def behind(
    hub: Hub, identity: SiteIdentity, faults: list[Fault], *, then: Fault | None = None
) -> Iterator[tuple[ControlLine, Proxy]]:
    """A line whose TCP connections are spoiled on their way to the door."""
    spoiling = Proxy("127.0.0.1:0", f"127.0.0.1:{hub.gateway.port}", faults, then=then)

    async def spoil(ready: Callable[[], None], over: asyncio.Event) -> None:
        async with spoiling:
            ready()
            await over.wait()

    with in_a_thread(spoil):
        port = int(spoiling.address.rpartition(":")[2])
        settings = identity.settings.model_copy(update={"port": port})
        there = SiteIdentity(identity.folder, settings, clock=identity._clock)
        with ControlLine(there, limits=TunnelLimits(linger_s=0.5)) as line:
            yield line, spoiling


@contextmanager
def hospital_proxy(status: int = 200) -> Iterator[tuple[int, list[bytes]]]:
    """Its port and the heads that it was sent."""
    heads: list[bytes] = []
    ports: list[int] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %d Answer\r\n\r\n" % status)
        if status != 200:
            writer.close()
            return
        host, _, port = heads[-1].split()[1].decode().rpartition(":")
        there = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    async def serve(ready: Callable[[], None], over: asyncio.Event) -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready()
        await over.wait()
        server.close()

    with in_a_thread(serve):
        yield ports[0], heads


def test_it_goes_through_the_hospital_s_proxy_to_both_doors(hub: Hub) -> None:
    north, south = hub.home.enrol("north"), hub.home.begin("south")
    with hospital_proxy() as (port, heads):
        proxy = HospitalProxy.parse(f"http://user:secret@127.0.0.1:{port}")
        with hub.line(north, proxy=proxy) as line:
            assert line.client.beat(beat(hub.home.clock)).release
        with hub.line(south, enrolling=True, proxy=proxy) as line:
            assert b"pending" in line.client.enrol(south.request() or b"")
    ports = [int(head.split()[1].decode().rpartition(":")[2]) for head in heads]
    assert ports == [hub.gateway.port, hub.door.port]
    assert all(b"Proxy-Authorization: Basic" in head for head in heads)


def test_a_proxy_that_refuses_is_said(hub: Hub) -> None:
    with hospital_proxy(407) as (port, _):
        with hub.line(hub.home.enrol("north"), proxy=HospitalProxy.parse(f"http://127.0.0.1:{port}")) as line:
            with pytest.raises(ControlError, match="login") as told:
                line.client.beat(beat(hub.home.clock))
    assert told.value.reason == "proxy_login"


@pytest.mark.parametrize("fault", ["cut_up_after", "cut_down_after"])
@pytest.mark.parametrize("place", [0, 1, 500, 1200, 2000, 2600])
def test_cut_anywhere_a_call_fails_in_words_and_the_next_is_answered(hub: Hub, fault: str, place: int) -> None:
    """In TCP's first bytes, in the handshake, in gRPC's preface, in the answer: a beat is whole or it is none."""
    with behind(hub, hub.home.enrol("north"), [Fault(**{fault: place})]) as (line, spoiling):
        with pytest.raises(MammoFedError, match="to do"):
            for _ in range(100):
                line.client.beat(beat(hub.home.clock))
        assert line.client.beat(beat(hub.home.clock)).release
        assert spoiling.connections[0].ended == "cut"
    assert hub.roll.present().keys() == {"north"}


def test_a_half_open_line_is_given_up_and_made_anew(hub: Hub) -> None:
    """As after a laptop's sleep or a firewall that forgot: nobody says anything any more."""
    with behind(hub, hub.home.enrol("north"), [], then=Fault(half_open_after=3000)) as (line, spoiling):
        deadline = time.monotonic() + HANG_S
        while True:
            assert time.monotonic() < deadline, "it never went half-open"
            try:
                line.client.beat(beat(hub.home.clock), timeout=0.5)
            except ControlError as error:
                if any(passed.ended == "half-open" for passed in spoiling.connections):  # or it is a busy machine's
                    assert error.reason == "no_answer"
                    break
        spoiling._then = Fault()
        assert line.client.beat(beat(hub.home.clock)).release


def test_slow_and_late_lines_carry(hub: Hub) -> None:
    hub.offer()
    hub.board.tell("quick", kind="study_started")
    north = hub.home.enrol("north")
    for fault in (Fault(bytes_per_s=MBIT), Fault(latency_s=0.02)):
        with behind(hub, north, [], then=fault) as (line, _):
            assert line.client.beat(beat(hub.home.clock)).release
            watch = line.client.watch(WatchRequest())
            assert next(watch).kind == "study_started"
            watch.close()


def test_bytes_that_were_recorded_and_sent_again_open_nothing(hub: Hub) -> None:
    """TLS takes each handshake once: the doubled connection is refused, and at worst it breaks the first one."""
    with behind(hub, hub.home.enrol("north"), [Fault(double=True)]) as (line, spoiling):
        while len(spoiling.connections) < 2:  # the proxy ends the first with its double, sooner or later
            with contextlib.suppress(MammoFedError):
                line.client.beat(beat(hub.home.clock), timeout=2.0)
            line.client.reset()
        assert line.client.beat(beat(hub.home.clock)).release
        assert spoiling.connections[0].doubled > 0
        assert len(hub.home.reasons("admitted")) <= len(spoiling.connections), "never one for the double"


def test_a_gateway_without_the_control_service_is_said(hub: Hub) -> None:
    """An older coordinator, or nginx in the gateway's place: it does not take our name of the protocol (ALPN)."""
    hub.gateway._context.set_alpn_protocols(["http/1.1"])
    with hub.line(hub.home.enrol("north")) as line, pytest.raises(ControlError, match="does not offer") as told:
        line.client.beat(beat(hub.home.clock))
    assert told.value.reason == "no_service"


def test_a_control_service_that_is_down_is_said(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    north = hub.home.enrol("north")
    with hub.open():
        hub.gateway._control = None
        with hub.line(north) as line, pytest.raises(CertificateError) as told:
            line.client.beat(beat(hub.home.clock))
    assert told.value.reason == "unavailable"


def test_an_enrolment_door_that_is_full_is_tried_again(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    north = hub.home.begin("north")
    with hub.open(enrol_limits=EnrolLimits(connections=0)):
        with hub.line(north, enrolling=True) as line, pytest.raises(ControlError):
            line.client.enrol(north.request() or b"")
    with hub.open(**hub.ports):
        with hub.line(north, enrolling=True) as line:
            assert line.client.enrol(north.request() or b"")


def test_a_line_leaves_nothing_behind(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Any] = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with hub.line(hub.home.enrol("north")) as line:
        made.append(line._folder)
        assert made[0].stat().st_mode & 0o777 == 0o700 and made[0].parent == tmp_path
        assert line.client.beat(beat(hub.home.clock)).release
        assert line.status.words == "connected"
    assert not made[0].exists()
