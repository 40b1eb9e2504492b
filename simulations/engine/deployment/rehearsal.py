"""A coordinator and its sites on this machine, made by the commands that people type; used by `run` and by tests.

What lasts runs in processes of its own under a supervisor that starts again whatever is killed, as systemd would. What
a person does in between (compare words, review, approve) is done here by the same commands, called in this process.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from client.cli import site as site_group
from client.deploy.home import SiteHome
from client.deploy.join import trainer_environment
from client.deploy.peer_keys import peer_keys, publish_key
from client.deploy.policy_file import Policy
from client.trainer.client import listens
from server.cli import server as server_group
from server.deploy.home import CoordinatorHome
from server.deploy.studies import StudyFolder, Wish, find_study
from shared_model.certificates import Role
from shared_model.errors import TrainerError
from shared_model.fingerprint import six_words
from shared_model.guard import descendants
from shared_model.private_files import make_private_folder, write_private
from shared_model.protocol import Protocol
from shared_model.supervisor import Service, Supervisor
from simulations.ports import held_ports

HUB, NAME = "hub", "rehearsal"
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Party:
    """A site or the evaluator. salt, test_fraction, private_only: of its policy.

    trainer: name of a trainer process that it shares with others of that name; empty: it has one of its own.
    """

    name: str
    role: Role
    cohort: Path
    salt: str
    test_fraction: float
    private_only: bool
    device: str
    trainer: str = ""


class Rehearsal:
    """A context manager: everybody is enrolled and runs inside; nobody is left after it. Homes stay for the next time.

    Args:
        folder: where coordinator and sites live: `hub`, and one folder for each party.
        timeout_s: until something that should happen by itself has happened.
        say: is told each step.
        reached_by: the port that sites connect to in place of the coordinator's; a proxy before it may count or cut.

    Raises:
        TrainerError: something did not happen in time; the words say where to look.
    """

    def __init__(
        self, folder: Path, parties: Sequence[Party], *, timeout_s: float, say: Callable[[str], None] = lambda _: None,
        reached_by: Callable[[int], int] = lambda port: port,
    ) -> None:  # fmt: skip
        self.folder, self.parties, self._timeout, self._say = folder.resolve(), tuple(parties), timeout_s, say
        self._reached_by = reached_by
        self.supervisor, self._held = Supervisor(state=None), contextlib.ExitStack()
        self.sites = {party.name: SiteHome(self.folder / party.name) for party in parties}

    def __enter__(self) -> Self:
        make_private_folder(self.folder)
        self.supervisor.__enter__()
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.supervisor.__exit__(kind, error, trace)
        finally:
            self._held.close()

    @property
    def hub(self) -> CoordinatorHome:
        """The coordinator's home."""
        return CoordinatorHome.open(self.folder / HUB)

    # --- commands, as people type them ---

    def server(self, command: str, *arguments: str) -> str:
        """`mammofed server COMMAND HOME ARGUMENTS`; returns what it printed."""
        return call(server_group, command, str(self.folder / HUB), *arguments)

    def site(self, name: str, command: str, *arguments: str) -> str:
        """`mammofed site COMMAND HOME ARGUMENTS` at one site."""
        return call(site_group, command, str(self.sites[name].folder), *arguments)

    # --- steps ---

    def _begin(self) -> None:
        if not (self.folder / HUB / "coordinator.json").exists():
            port, enrol_port, link_port = self._held.enter_context(held_ports(3))  # also while a killed one is away
            self._say("Coordinator: authority, signing key, audit log")
            self.server("init", "--name", NAME, "--host", "localhost", "--listen", "127.0.0.1", "--port", str(port),
                        "--enrol-port", str(enrol_port), "--link-port", str(link_port))  # fmt: skip
        self.supervisor.add(self._service(HUB, "server", "serve", str(self.folder / HUB)))
        new = [party for party in self.parties if not (self.sites[party.name].folder / "identity/site.json").exists()]
        for party in new:
            self._say(f"{party.name}: invitation, keys, policy")
            self._invite(party)
        for party in self.parties:
            self.bring_back(party.name)
        for party in new:
            self._enrol(party)

    def _invite(self, party: Party) -> None:
        token = self.server("invite", party.name, "--role", party.role.value).splitlines()[0]
        settings = self.hub.settings
        door = f"localhost:{self._reached_by(settings.port)}"
        self.site(party.name, "init", "--invite", token, "--server", door, "--enrol-port", str(settings.enrol_port),
                  "--cohort", str(party.cohort), "--role", party.role.value)  # fmt: skip
        if party.trainer:  # whose own `site join` runs no trainer
            publish_key(self.sites[party.name])
        home = self.sites[party.name]  # what follows is the administrator's hand on the policy
        policy = Policy.read(home.policy_file).model_copy(update={
            "salt": party.salt, "test_fraction": party.test_fraction, "private_only": party.private_only,
            "device": party.device, "least_cohort": 1,  # a rehearsal's hospitals are small
        })  # fmt: skip
        write_private(home.policy_file, policy.to_yaml().encode())

    def _enrol(self, party: Party) -> None:
        def waits() -> bool:
            with self.hub.enrolment() as enrolment:
                return party.name in {pending.member.site for pending in enrolment.pending()}

        self.until(waits, f"{party.name} did not ask for its certificate")
        words = self.sites[party.name].identity().words(six_words)
        self._say(f"{party.name}: words compared, enrolled")
        self.server("enrol", party.name, "--certificate", words["certificate"], "--node", words["node"])

    def propose(self, run_dir: Path) -> StudyFolder:
        """Sign the protocol of a prepared run directory, which becomes the study's folder; wait until all have it."""
        protocol = Protocol.read(run_dir / "protocol.json")
        place = self.hub.study(protocol.study)
        if not place.exists():
            place.symlink_to(run_dir.resolve(), target_is_directory=True)
        self.server("propose", str(run_dir / "protocol.json"), "--weights", str(run_dir / "initial.safetensors"))
        self._say(f"{protocol.study}: proposed under the coordinator's signature")
        return find_study(self.hub, protocol.study)

    def approve(self, study: str) -> None:
        """Each site's administrator says yes, once the proposal is there."""
        for name, home in self.sites.items():
            self.until(lambda home=home: _offered(home, study), f"{name} was not shown {study}")  # type: ignore[misc]
            self.until(lambda home=home: _peers_there(home, study), f"{name} was not told the others' keys")  # type: ignore[misc]
            self.site(name, "approve", study, "--yes", "--peers-compared")
        self._say(f"{study}: approved by {len(self.sites)} parties")
        self._share_trainers()
        for name, home in self.sites.items():
            self.until(lambda home=home: listens(home.socket), f"the trainer of {name} does not serve")  # type: ignore[misc]

    def _share_trainers(self) -> None:
        """Start the trainers that several parties share; they read each party's configuration, so after an approval."""
        running = self.supervisor.states()
        for name in sorted({party.trainer for party in self.parties if party.trainer} - running.keys()):
            homes = [self.sites[party.name] for party in self.parties if party.trainer == name]
            socket = SiteHome(self.folder / name).socket
            make_private_folder(socket.parent)
            for home in homes:
                write_private(home.trainer / "trainer.json", home.trainer_config().to_json().encode())
                make_private_folder(home.socket.parent)
                home.socket.unlink(missing_ok=True)
                home.socket.symlink_to(socket)
            configs = [str(home.trainer / "trainer.json") for home in homes]
            command = [sys.executable, "-P", "-m", "client.trainer.server", "--socket", str(socket), *configs]
            self.supervisor.add(Service(name=name, command=command, environment=self._environment(),
                                        folder=self.folder, log=self.folder / "logs" / f"{name}.log"))  # fmt: skip

    def wait(self, study: StudyFolder, *, look: Callable[[], None] = lambda: None, timeout_s: float) -> StudyFolder:
        """Until the coordinator says that the study has ended, in whatever way.

        Args:
            look: called again and again meanwhile.

        Raises:
            TrainerError: it did not, within `timeout_s`.
        """
        self.until(lambda: look() or study.wanted().wish in (Wish.ENDED, Wish.STOPPED),  # type: ignore[func-returns-value]
                   f"{study.name} did not end", timeout_s=timeout_s)  # fmt: skip
        return study

    def until(self, true: Callable[[], bool], otherwise: str, *, timeout_s: float | None = None) -> None:
        """Wait for something that another process brings about.

        Raises:
            TrainerError: it did not happen in time.
        """
        deadline = time.monotonic() + (self._timeout if timeout_s is None else timeout_s)
        while not true():
            if time.monotonic() > deadline:
                raise TrainerError(otherwise, found=f"{timeout_s or self._timeout:g} s have gone by",
                                   remedy=f"read the logs in {self.folder}")  # fmt: skip
            time.sleep(POLL_S)

    # --- processes ---

    def pids(self, party: str, words: str) -> list[int]:
        """Processes of one party whose command line holds `words`; for whoever kills them."""
        state = self.supervisor.states()[party]
        found = []
        for pid in descendants(state.pid) if state.pid else []:
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if words in line and "guard.py" not in line:
                    found.append(pid)
        return found

    def kill(self, party: str) -> None:
        """SIGKILL to all that runs at a site or the evaluator, as when its machine loses power; it stays away."""
        state = self.supervisor.states()[party]
        for pid in [*descendants(state.pid), state.pid] if state.pid else []:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.supervisor.remove(party)

    def bring_back(self, party: str) -> None:
        """Start a party's processes; also after :meth:`kill`."""
        (known,) = [found for found in self.parties if found.name == party]
        courier = ("--only", "courier") if known.trainer else ()
        self.supervisor.add(self._service(party, "site", "join", str(self.sites[party].folder), *courier))

    def _service(self, name: str, *arguments: str) -> Service:
        program = Path(sys.executable).parent / "mammofed"
        return Service(name=name, command=[str(program), *arguments], environment=self._environment(),
                       folder=self.folder, log=self.folder / "logs" / f"{name}.log")  # fmt: skip

    def _environment(self) -> Mapping[str, str]:
        path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        return {**trainer_environment(), **path}


def call(group: click.Group, *arguments: str) -> str:
    """Run a command in this process; returns its standard output. Errors are raised as they are."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        group.main(args=list(arguments), prog_name="mammofed", standalone_mode=False)
    return said.getvalue()


def _peers_there(home: SiteHome, study: str) -> bool:
    """Whether the coordinator has handed out every key that the study's secure sum needs."""
    from client.trainer.consent import proposals

    signed = proposals(home, release=version("mammofed")).get(study)
    return signed is not None and all(peer.key is not None for peer in peer_keys(home, signed.protocol))


def _offered(home: SiteHome, study: str) -> bool:
    return any(home.inbox.glob(f"{study}-*.json")) if home.inbox.exists() else False
