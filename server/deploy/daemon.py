"""`mammofed server serve`: doors, control service, SuperLink and SuperExec, studies; until it is told to end.

Everything that it knows is on the disk, so it may be killed at any moment and started again; systemd does that. Work
that waits for SuperLink is done by one housekeeping thread, the doors by an event loop, the control service by gRPC's
own threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
import threading
import time
from collections.abc import Callable
from importlib.metadata import version

from server.control.roll import Roll
from server.control.server import ControlServer
from server.control.service import ControlService
from server.control.witness import Witness
from server.deploy.board import StudyBoard
from server.deploy.home import CoordinatorHome
from server.deploy.link import SUPERLINK, Link
from server.deploy.membership import Membership
from server.deploy.nginx import NginxFront
from server.deploy.record import Doorkeeper, StudyRecord
from server.deploy.studies import Reconciler
from server.deploy.watch import watch_service
from server.enrolment.enrol_door import EnrolDoor
from server.enrolment.enrolment import Enrolment
from server.enrolment.gateway import Gateway, Upstream
from server.enrolment.peers import Peers
from server.enrolment.registry import Registry
from shared_model.audit import AuditLog
from shared_model.certificates import enrolling_server_context, server_context
from shared_model.errors import MammoFedError, RoundError, StorageError
from shared_model.fingerprint import six_words
from shared_model.private_files import is_held
from shared_model.supervisor import Supervisor

STEP_S = 1.0
LOG_PATIENCE_S = 5.0
GRACE_S = 8.0  # for a command of Flower's that is running when this process is told to end; one takes 2 s
PATIENCE_S = 120.0  # a study waits so long for its sites at its start, then takes the quorum that it has

log = logging.getLogger("mammofed.server")


class Housekeeper:
    """What the daemon does again and again, in a thread of its own; a failure is said once and tried again."""

    def __init__(
        self, home: CoordinatorHome, link: Link, supervisor: Supervisor, audit: AuditLog, doorkeeper: Doorkeeper
    ) -> None:
        self._home, self._audit, self._supervisor = home, audit, supervisor
        self._registry = home.registry()
        self._membership = Membership(home, link, self._registry, report=self._say)
        self._reconciler = Reconciler(home, link, patience_s=PATIENCE_S, report=self._say, head=audit.head)
        self._steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("commands' entries", self._drain), ("doors' entries", doorkeeper.step),
            ("journals", StudyRecord(home, audit).step),
            ("nginx", self._front),  # before what waits for SuperLink: who was revoked is not to wait with it
            ("nodes", self._members), ("studies", self._reconciler.step),
        )  # fmt: skip
        self._nginx = NginxFront(home)
        self._starts, self._fault = 0, dict[str, str]()

    def run(self, end: threading.Event) -> None:
        """Until `end` is set.

        Raises:
            StorageError: the audit log cannot be written any more; it must be opened again, so this process must end.
        """
        try:
            while not end.wait(STEP_S):
                for name, step in self._steps:
                    if not end.is_set():
                        self._try(name, step)
                if self._audit.broken:
                    raise StorageError("the audit log cannot be written any more", found=self._audit.broken,
                                       remedy="make room or check the disk; a new start goes on")  # fmt: skip
        finally:
            self._registry.close()

    def _try(self, name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # whatever it is, the other steps go on
            words = str(error) if isinstance(error, MammoFedError) else repr(error)
            if self._fault.get(name) != words:  # said once, tried again at the next step
                log.warning("%s: %s", name, words, exc_info=not isinstance(error, MammoFedError))
            self._fault[name] = words
        else:
            self._fault.pop(name, None)

    def _drain(self) -> None:
        self._home.drain(self._audit)

    def _members(self) -> None:
        starts = self._supervisor.states()[SUPERLINK].starts
        if starts != self._starts:
            self._membership.check_again()
        try:
            self._membership.step()
        except RoundError:
            self._membership.check_again()
            raise
        self._starts = starts

    def _front(self) -> None:
        if self._nginx.step(self._registry):
            log.info("nginx has the new lists of members")

    def _say(self, what: str, words: str) -> None:
        log.info("%s: %s", what, words)
        self._audit.append("coordinator_did", about=what, words=words[:300])


async def serve(home: CoordinatorHome, end: asyncio.Event) -> None:
    """Run everything until `end` is set.

    Raises:
        StorageError: another daemon has this home, or the disk refuses. ConfigError: a port is taken.
    """
    link = Link(home)
    with contextlib.ExitStack() as stack:
        audit = stack.enter_context(await _audit_log(home))  # first: who has it is the daemon, and alone writes below
        link.prepare()
        authority = home.authority()
        credentials = authority.server_credentials(home.settings.hosts)
        audit.append("daemon_started")
        supervisor = stack.enter_context(
            Supervisor(state=home.run / "processes.json", report=lambda name, words: log.info("%s %s", name, words))
        )
        doorkeeper = Doorkeeper(audit)
        registry = stack.enter_context(home.registry())
        upstream = Upstream(port=home.settings.link_port,
                            context=ssl.create_default_context(cadata=link.certificate.read_text()))  # fmt: skip
        # A registry of its own: what enrols holds it while it writes, and the doors' event loop must not wait for that.
        control = stack.enter_context(_control(home, stack.enter_context(home.registry()), audit))
        gateway = Gateway(
            context=server_context(credentials, ca_pem=authority.ca_pem), registry=registry, upstream=upstream,
            control=control.members, host=home.settings.listen, port=home.settings.port, report=doorkeeper.note,
        )  # fmt: skip
        enrol_door = EnrolDoor(
            context=enrolling_server_context(credentials, ca_pem=authority.ca_pem), control=control.strangers,
            host=home.settings.listen, port=home.settings.enrol_port, report=doorkeeper.note,
        )  # fmt: skip
        keeper = Housekeeper(home, link, supervisor, audit, doorkeeper)
        async with gateway, enrol_door:
            log.info("doors are open: sites on port %d, enrolment on port %d", gateway.port, enrol_door.port)
            for service in link.services():
                supervisor.add(service)
            supervisor.add(watch_service(home))
            await _keep_house(keeper, link, end)
        doorkeeper.flush()
        audit.append("daemon_ended")
    log.info("the coordinator has ended; sites wait for it and come back by themselves")


async def _audit_log(home: CoordinatorHome) -> AuditLog:
    """Take the log; a command that is just writing into it has it for a moment only."""
    end = time.monotonic() + LOG_PATIENCE_S
    while True:
        try:
            return home.audit_log()
        except StorageError:
            if not is_held(home.audit_file) or time.monotonic() >= end:
                raise
        await asyncio.sleep(0.2)


async def _keep_house(keeper: Housekeeper, link: Link, end: asyncio.Event) -> None:
    """Run the housekeeper until `end`, or until it fails for good; then nothing of it is left, in bounded time."""
    ends, told = threading.Event(), asyncio.ensure_future(end.wait())
    work = asyncio.ensure_future(asyncio.to_thread(keeper.run, ends))
    try:
        await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        ends.set()
        await asyncio.wait({work}, timeout=GRACE_S)
        link.end()
    await work


def _control(home: CoordinatorHome, registry: Registry, audit: AuditLog) -> ControlServer:
    """The control service over this home's studies and members."""
    peers, roll = Peers(), Roll(home.run / "present.json")
    enrolment = Enrolment(home.authority(), registry, fingerprint=six_words, coordinator=home.coordinator)

    def shut_out(site: str, words: str) -> None:
        enrolment.revoke(site, reason=words[:300])
        audit.append("revoked", site=site, reason=words[:300])

    service = ControlService(
        peers=peers, registry=registry, enrolment=enrolment, board=StudyBoard(home), roll=roll,
        witness=Witness(audit, alarm=shut_out), release=version("mammofed"),
        left=lambda site, reason: shut_out(site, f"it left: {reason}"),
    )  # fmt: skip
    return ControlServer(service, peers=peers, roll=roll)


def run(home: CoordinatorHome) -> None:
    """Serve until SIGTERM or SIGINT."""

    async def until_told() -> None:
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        await serve(home, end)

    asyncio.run(until_told())
