"""`mammofed site join`: keeps a site's trainer, tunnel, presence and SuperNode running, until it is told to end.

On a machine of its own the courier and the trainer are two users and two services (`--only`); on a laptop they are one
command. Everything that they know is on the disk, so that they may be killed at any moment and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from client.app import SITE_KEY, SOCKET_KEY
from client.deploy.audit_exchange import courier_log
from client.deploy.home import SiteHome
from client.deploy.peer_keys import publish_key, published
from client.deploy.presence import Presence
from client.deploy.proxy import Proxy
from client.deploy.trainer_link import TrainerLink
from client.deploy.tunnel import Tunnel, TunnelStatus
from shared_model.errors import ConfigError, MammoFedError
from shared_model.flower_app import flower_command, quiet_environment
from shared_model.flower_gate import BUNDLES, bundle_sha256, write_commands
from shared_model.private_files import make_private_folder, write_private
from shared_model.supervisor import Service, Supervisor

STEP_S = 0.5
SUPERNODE, TRAINER = "supernode", "trainer"
SILENT_S = 150.0  # SuperNode sends a heartbeat every 30 s, and connects again and again where nobody answers
NODE_RESTART_S = 5.0  # Flower refuses a node that was killed for about a minute; asking more often helps nobody
BUNDLE_LIST = "allowed-bundles"

log = logging.getLogger("mammofed.site")


class TrainerSide:
    """The trainer's service, started once something was approved; it finds later approvals by itself."""

    def __init__(self, home: SiteHome, supervisor: Supervisor, *, group: str | None = None) -> None:
        self._home, self._supervisor, self._group = home, supervisor, group
        self._config = home.trainer / "trainer.json"
        self._running, self._fault = "", ""
        self._seen: object = None
        self._published = False

    def step(self) -> None:
        """Look once; what is wrong is said once and tried again. A trainer whose policy was changed starts again.

        Its key is made before anything was approved: the other sites' people compare its words before they approve.
        """
        if not self._published:
            try:
                publish_key(self._home)
                self._published = True
            except MammoFedError as error:
                self._complain(error)
        seen = [_stamp(path) for path in (self._home.policy_file, self._home.trainer / "coordinator.json")]
        if seen == self._seen:
            return
        try:
            text = self._home.trainer_config().to_json()
        except MammoFedError as error:
            self._complain(error)
            if self._running:  # what the hospital allows cannot be read: what it allowed before may be too much by now
                self._supervisor.remove(TRAINER)
                self._running = ""
            return
        self._seen, self._fault = seen, ""
        if text == self._running:
            return
        write_private(self._config, text.encode())
        if self._running:
            log.info("the trainer starts again with the changed policy")
            self._supervisor.restart(TRAINER)
            self._running = text
            return
        command = [sys.executable, "-P", "-m", "client.trainer.server", "--socket", str(self._home.socket)]
        if self._group is None:
            make_private_folder(self._home.socket.parent)
        else:  # the folder lets others through (client/deploy/units); the socket in it is for this group
            command += ["--group", self._group]
        command.append(str(self._config))
        self._supervisor.add(Service(
            name=TRAINER, command=command, environment=trainer_environment(), folder=self._home.trainer,
            log=self._home.trainer / "logs" / "trainer.log",
        ))  # fmt: skip
        self._running = text


    def _complain(self, error: MammoFedError) -> None:
        if str(error) != self._fault:
            log.warning("the trainer waits: %s", error)
            self._fault = str(error)


class CourierSide:
    """SuperNode before the tunnel; started once the site has its certificate, and again when it is silent for long.

    A SuperNode whose coordinator once answered with an error shuts down, and hangs in that for ever: its process lives,
    and the site would be lost until a person looked.

    Args:
        tunnel_port: where SuperNode finds the tunnel. silence_s: for how long it has said nothing there.
    """

    def __init__(
        self, home: SiteHome, supervisor: Supervisor, *, tunnel_port: int, silence_s: Callable[[], float]
    ) -> None:
        self._home, self._supervisor, self._port, self._silence_s = home, supervisor, tunnel_port, silence_s
        self._running = False
        self._again: threading.Thread | None = None

    def step(self) -> None:
        """Look once."""
        if not self._running:
            if self._home.identity().certificate() is not None:
                self._running = True
                self._supervisor.add(supernode(self._home, tunnel_port=self._port))
        elif self._silence_s() > SILENT_S and not self._ending() and self._age_s() > SILENT_S:
            self._begin_again()

    def _ending(self) -> bool:
        """Whether it is just being ended; then the supervisor is not asked, which would make the tunnel wait."""
        return self._again is not None and self._again.is_alive()

    def _age_s(self) -> float:
        return self._supervisor.states()[SUPERNODE].seconds

    def _begin_again(self) -> None:
        """In a thread: a process that hangs takes some time to end, and the tunnel is not to wait for it."""
        log.warning("SuperNode has said nothing for %.0f s and is started again", self._silence_s())
        self._again = threading.Thread(target=self._supervisor.restart, args=(SUPERNODE,), daemon=True)
        self._again.start()


def prepare_courier(home: SiteHome) -> None:
    """Write the site's list of app bundles, the gate before Flower's loader, and Flower's home."""
    courier = home.courier
    for name in ("home", "empty", "logs"):
        make_private_folder(courier / name)
    write_private(courier / BUNDLE_LIST, f"{bundle_sha256()}\n".encode())
    write_commands(courier / "bin", {"flwr-clientapp": "client.gate"})


def supernode(home: SiteHome, *, tunnel_port: int) -> Service:
    """SuperNode, which finds our `flwr-clientapp` first in its PATH and reaches the coordinator by the tunnel alone."""
    identity, courier = home.folder.resolve() / "identity", home.courier.resolve()
    environment = quiet_environment(courier / "home")
    environment |= {
        "PATH": os.pathsep.join([str(courier / "bin"), environment["PATH"]]), BUNDLES: str(courier / BUNDLE_LIST),
    }  # fmt: skip
    node = {SOCKET_KEY: str(home.socket), SITE_KEY: home.identity().settings.site}
    command = [
        flower_command("flower-supernode"), "--superlink", f"127.0.0.1:{tunnel_port}",
        "--root-certificates", str(identity / "local-ca.pem"),
        "--auth-supernode-private-key", str(identity / "node.key"), "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(_free_port()),
        "--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in node.items()),
    ]  # fmt: skip
    return Service(name=SUPERNODE, command=command, environment=environment, folder=courier / "empty",
                   log=courier / "logs" / "supernode.log", restart_s=NODE_RESTART_S)  # fmt: skip


def trainer_environment() -> Mapping[str, str]:
    """Of the trainer's process: what a machine has, nothing of the shell's."""
    kept = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]), "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


async def join(
    home: SiteHome, end: asyncio.Event, *, only: str | None, proxy: Proxy | None, group: str | None = None
) -> None:
    """Run the site's side until `end` is set.

    Args:
        only: `courier` or `trainer`; None: both.
        group: whose members reach the trainer's socket; None: this user only.

    Raises:
        ConfigError: a port or socket cannot be used. StorageError: the disk refuses.
    """
    with contextlib.ExitStack() as stack:
        supervisor = stack.enter_context(
            Supervisor(state=(home.trainer if only == "trainer" else home.courier) / "services.json",
                       report=lambda name, words: log.info("%s %s", name, words))
        )  # fmt: skip
        steps: list[TrainerSide | CourierSide] = []
        if only != "courier":
            steps.append(TrainerSide(home, supervisor, group=group))
        async with _courier(home, supervisor, proxy=proxy) if only != "trainer" else _nobody() as courier:
            steps += [courier] if courier else []
            while not end.is_set():
                for side in steps:
                    await asyncio.to_thread(side.step)  # a trainer that is started again takes its time to end
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(end.wait(), STEP_S)


@asynccontextmanager
async def _courier(home: SiteHome, supervisor: Supervisor, *, proxy: Proxy | None) -> AsyncIterator[CourierSide]:
    await asyncio.to_thread(prepare_courier, home)

    def say(status: TunnelStatus) -> None:
        log.info("line to the coordinator: %s", status.words)

    site = home.identity().settings.site
    with courier_log(home.courier, site) as audit:
        audit.append("courier_started", bundle=(home.courier / BUNDLE_LIST).read_text().strip())
        trainer = TrainerLink(home.socket, site, key=published(home)).as_trainer()
        async with Tunnel(home.identity(), proxy=proxy, report=say) as tunnel:
            presence = Presence(home.courier, home.identity(), audit=audit, release=version("mammofed"),
                                trainer=trainer, proxy=proxy)  # fmt: skip
            with presence:
                yield CourierSide(home, supervisor, tunnel_port=tunnel.port, silence_s=lambda: tunnel.silence_s)


@asynccontextmanager
async def _nobody() -> AsyncIterator[None]:
    yield None


def run(home: SiteHome, *, only: str | None, proxy: Proxy | None, group: str | None = None) -> None:
    """Keep the site's side running until SIGTERM or SIGINT."""
    if only not in (None, "courier", "trainer"):
        raise ConfigError("there is no such role here", found=only, expected="courier | trainer")

    async def until_told() -> None:
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        await join(home, end, only=only, proxy=proxy, group=group)

    asyncio.run(until_told())


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


