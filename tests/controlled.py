"""A whole coordinator with both doors and its control service, in threads of its own, and lines of sites to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.deploy.control import ControlLine
from client.deploy.identity import SiteIdentity
from client.deploy.tunnel import TunnelLimits
from server.control.board import Proposal
from server.control.roll import Roll
from server.control.server import ControlServer
from server.control.service import ControlLimits, ControlService
from server.control.witness import Witness
from server.enrolment.enrol_door import EnrolDoor, EnrolLimits
from server.enrolment.enrolment import Enrolment
from server.enrolment.gateway import Gateway, GatewayLimits, Upstream
from server.enrolment.peers import Peers
from server.rounds.events import Event
from shared_model.audit import AuditLog
from shared_model.certificates import Member, Role, enrolling_server_context, server_context
from shared_model.control import BeatRequest, PartyLog, TrainerState
from shared_model.protocol import Protocol
from shared_model.signed_protocol import Coordinator as Signer
from shared_model.signed_protocol import SignedProtocol
from shared_model.signing import SigningKey
from tests.enrolled import HANG_S, Coordinator, words
from tests.handmade_run import protocol_values
from tests.ports import free_port

NAME = "hub"
RELEASE = "0.1.0"


class MemoryBoard:
    """A board in memory."""

    def __init__(self) -> None:
        self.offers: list[Proposal] = []
        self.journal: dict[str, list[Event]] = {}

    def proposals(self, member: Member) -> Sequence[Proposal]:
        everything = member.role is Role.EVALUATOR
        return [offer for offer in self.offers if everything or member.site in offer.sites]

    def events(self, study: str, after: int) -> Sequence[tuple[int, Event]]:
        return list(enumerate(self.journal.get(study, []), start=1))[after:]

    def tell(self, study: str, **event: Any) -> None:
        self.journal.setdefault(study, []).append(Event(**{"time": 1.0, **event}))


class Hub:
    """The coordinator; `open` starts everything, on ports that stay its own, so that it can be opened there again."""

    def __init__(self, folder: Path, clock: Callable[[], float] | None = None) -> None:
        self.home = Coordinator(folder, clock)
        self.key = SigningKey.generate()
        self.signer = Signer.of(NAME, self.key.public)
        self.audit = AuditLog(folder / "audit.jsonl", owner=NAME, key=self.key, clock=self.home.clock)
        self.board, self.peers = MemoryBoard(), Peers()
        self.alarms: list[tuple[str, str]] = []
        self.gone: list[tuple[str, str]] = []
        self.roll = Roll(folder / "present.json", clock=self.home.clock)
        self.home.enrolment = Enrolment(self.home.authority, self.home.registry, fingerprint=words,
                                        clock=self.home.clock, coordinator=self.signer)  # fmt: skip
        self.ports = {"port": 1, "enrol_port": 1}  # nobody listens there
        self.service: ControlService
        self.server: ControlServer
        self.gateway: Gateway
        self.door: EnrolDoor

    def offer(self, study: str = "quick", *, release: str = RELEASE, key: SigningKey | None = None) -> SignedProtocol:
        """Propose a study of four sites: north, east, south, west."""
        protocol = Protocol.create(protocol_values() | {"study": study, "release": release})
        signed = SignedProtocol.sign(protocol, name=NAME, key=key or self.key)
        self.board.offers.append(
            Proposal(study=study, sha256=signed.sha256, file=signed.to_json().encode(),
                     sites=frozenset(site.name for site in protocol.federation.sites))
        )  # fmt: skip
        return signed

    @contextmanager
    def open(
        self, *, limits: GatewayLimits | None = None, enrol_limits: EnrolLimits | None = None,
        control_limits: ControlLimits | None = None, roles: frozenset[Role] = frozenset(Role), port: int = 0,
        enrol_port: int = 0, threads: int = 32,
    ) -> Iterator[Hub]:  # fmt: skip
        witness = Witness(self.audit, pause_s=0.0, alarm=lambda site, said: self.alarms.append((site, said)))
        self.service = ControlService(
            peers=self.peers, registry=self.home.registry, enrolment=self.home.enrolment, board=self.board,
            witness=witness, roll=self.roll, release=RELEASE, clock=self.home.clock,
            left=lambda site, reason: self.gone.append((site, reason)),
            limits=control_limits or ControlLimits(look_s=0.02),
        )  # fmt: skip
        with ControlServer(self.service, peers=self.peers, roll=self.roll, threads=threads) as self.server:
            credentials = self.home.authority.server_credentials(["localhost", "127.0.0.1"])
            ca = self.home.authority.ca_pem
            self.gateway = Gateway(
                context=server_context(credentials, ca_pem=ca), registry=self.home.registry, upstream=Upstream(port=9),
                control=self.server.members, host="127.0.0.1", port=port or free_port(), roles=roles,
                clock=self.home.clock, limits=limits or GatewayLimits(watch_s=0.02, linger_s=0.5),
                report=self.home.events.append,
            )  # fmt: skip
            self.door = EnrolDoor(
                context=enrolling_server_context(credentials, ca_pem=ca), control=self.server.strangers,
                host="127.0.0.1", port=enrol_port or free_port(), limits=enrol_limits, report=self.home.events.append,
            )  # fmt: skip
            with in_a_thread(self._doors):
                yield self

    async def _doors(self, ready: Callable[[], None], over: asyncio.Event) -> None:
        async with self.gateway, self.door:
            self.ports = {"port": self.gateway.port, "enrol_port": self.door.port}
            ready()
            await over.wait()

    def at(self, identity: SiteIdentity) -> SiteIdentity:
        """The same site, knowing where the doors are."""
        settings = identity.settings.model_copy(update=self.ports)
        return SiteIdentity(identity.folder, settings, clock=identity._clock)

    def line(self, identity: SiteIdentity, *, enrol_port: int | None = None, **options: Any) -> ControlLine:
        options.setdefault("limits", TunnelLimits(linger_s=0.5))
        there = self.at(identity)
        if enrol_port is not None:
            there.settings = there.settings.model_copy(update={"enrol_port": enrol_port})
        return ControlLine(there, **options)


@contextmanager
def in_a_thread(work: Callable[[Callable[[], None], asyncio.Event], Any]) -> Iterator[None]:
    """Run a coroutine in an event loop of its own until the block ends."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        over = asyncio.Event()
        await work(lambda: started.set_result((asyncio.get_running_loop(), over)), over)

    def main() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    loop, over = started.result(HANG_S)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(HANG_S)
        assert not thread.is_alive()


def beat(clock: Callable[[], float], *logs: PartyLog, **changes: Any) -> BeatRequest:
    request = BeatRequest(time=clock(), release=RELEASE, trainer=TrainerState(up=True, device="cpu"), logs=logs)
    return request.model_copy(update=changes)


class Diary:
    """An audit log of a site's party, and what it says of itself."""

    def __init__(self, folder: Path, owner: str, *, party: str = "trainer", key: SigningKey | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key, self.party = key or SigningKey.generate(), party
        self.audit = AuditLog(folder / f"{party}.jsonl", owner=owner, key=self.key)

    def said(self, since: int | None = None, *, recorded: int = 0) -> PartyLog:
        statement = None if since is None else self.audit.statement(since)
        return PartyLog(party=self.party, owner=self.audit.owner, log=self.audit.log, key=self.key.public.hex,
                        statement=statement, recorded=recorded)  # fmt: skip


