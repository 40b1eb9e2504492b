"""SuperLink and SuperExec of a coordinator, and Flower's command line before them; used by the daemon.

SuperLink listens on the loopback alone, keeps its state in a database and authenticates nodes by the keys that
enrolment bound to names; its ServerApps run in processes of their own, so that it may die without them. Flower's
Control API has no login: whoever reaches its port on this machine can stop runs and shut nodes out, so that a
coordinator's machine has no other users (server/COORDINATOR.md). What he submits does not run:
`shared_model.flower_gate`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.deploy.flower_shell import Done, FlowerShell
from server.deploy.home import CoordinatorHome
from server.deploy.nodes import Nodes
from shared_model.certificates import load_spki, loopback_credentials
from shared_model.errors import RoundError
from shared_model.flower_app import HOME, PATIENCE, STUDY, flower_command, quiet_environment, write_app
from shared_model.flower_gate import BUNDLES, bundle_sha256, write_commands
from shared_model.private_files import make_private_folder, write_private
from shared_model.supervisor import Service

SUPERLINK, SUPEREXEC = "superlink", "superexec"
COMMAND_S = 120.0  # `flwr` takes 2 s, more on a machine that is busy
CONNECTION = "coordinator"
BUNDLE_LIST = "allowed-bundles"
ENDED = "finished:"
NOT_FOUND = "Run ID not found"  # as Flower 1.41 says it
UNREGISTERED = "unregistered"  # flwr.supercore.constant.NodeStatus

_HOME = """\
[superlink]
default = "{name}"

[superlink.{name}]
address = "127.0.0.1:{port}"
root-certificates = {certificate}
"""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What Flower says of a run. status: `pending`, `running`, `finished:completed`, `finished:failed`, ..."""

    status: str
    details: str

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status.startswith(ENDED)


class Link:
    """SuperLink's side of a coordinator's home."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._home, self._folder = home, home.link
        self._port = home.settings.link_port
        self._lock, self._ending = threading.Lock(), False
        self._running: subprocess.Popen[bytes] | None = None
        self._shell: FlowerShell | None = None
        self._several = False

    def prepare(self) -> None:
        """Write what SuperLink reads at its start: a loopback certificate of its own, Flower's home, the app."""
        for name in ("home", "empty", "logs"):
            make_private_folder(self._folder / name)
        if not (self._folder / "link.pem").exists():
            both, public = loopback_credentials(now=time.time())
            begin = both.index(b"-----BEGIN CERTIFICATE")
            write_private(self._folder / "link.key", both[:begin])
            write_private(self._folder / "link.pem", public)
        text = _HOME.format(name=CONNECTION, port=self._port, certificate=json.dumps(str(self.certificate)))
        write_private(self._folder / "home" / "config.toml", text.encode())
        write_app(self._folder / "app")
        write_private(self._folder / BUNDLE_LIST, f"{bundle_sha256()}\n".encode())
        write_commands(self._folder / "bin", {"flwr-serverapp": "server.gate"})
        self._program.write_text(f"#!{sys.executable} -P\nfrom server.deploy.superlink import main\n\nmain()\n")
        self._program.chmod(0o700)

    @property
    def certificate(self) -> Path:
        """What proves SuperLink to its neighbours on this machine."""
        return self._folder / "link.pem"

    @property
    def _program(self) -> Path:
        return self._folder.resolve() / "bin" / "flower-superlink"

    def services(self) -> tuple[Service, Service]:
        """SuperLink and SuperExec, for the supervisor."""
        superlink = [
            str(self._program), "--host", "127.0.0.1", "--port", str(self._port),
            "--ssl-ca-certfile", str(self.certificate), "--ssl-certfile", str(self.certificate),
            "--ssl-keyfile", str(self._folder / "link.key"), "--enable-supernode-auth",
            "--database", str(self._folder / "state.db"), "--isolation", "process",
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        superexec = [flower_command("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{self._port}",
                     "--root-certificates", str(self.certificate)]  # fmt: skip
        return self._service(SUPERLINK, superlink), self._service(SUPEREXEC, superexec)

    def _service(self, name: str, command: list[str]) -> Service:
        return Service(name=name, command=command, environment=self.environment(), folder=self._folder / "empty",
                       log=self._folder / "logs" / f"{name}.log")  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Nothing is told to anybody, nothing is fetched or installed, one thread a process; and what SuperExec starts
        is this release, for the studies of this home."""
        environment = quiet_environment(self._folder / "home")
        path = os.pathsep.join([str(self._folder.resolve() / "bin"), environment["PATH"]])
        return environment | {"PATH": path, BUNDLES: str(self._folder.resolve() / BUNDLE_LIST),
                              HOME: str(self._home.folder.resolve())}  # fmt: skip

    # --- Flower's commands ---

    @property
    def nodes(self) -> Nodes:
        """Which node is which party."""
        return self._home.nodes

    def register(self, site: str, node: bytes) -> int:
        """Let a node in by its key; returns Flower's new id of it.

        Raises:
            RoundError: SuperLink has the key already, refuses or does not answer.
        """
        key = load_spki(node, ec.SECP384R1)
        public = self._folder / f"{site}.pub"
        write_private(public, key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        answer = self._flwr("supernode", "register", str(public), CONNECTION, "--name", site)
        try:
            return int(str(answer["node-id"]))
        except (KeyError, ValueError):
            raise RoundError(f"Flower gave the node of {site} no number", found=json.dumps(answer)[:200]) from None

    def unregister(self, node_id: int) -> None:
        """Shut a node out. One that is gone is fine.

        Raises:
            RoundError: SuperLink does not answer.
        """
        if node_id in self.node_ids():
            self._flwr("supernode", "unregister", str(node_id), CONNECTION)

    def submit(self, study: Path, *, patience_s: float) -> int:
        """Start a Flower run of a study; returns its id.

        Raises:
            RoundError: SuperLink refuses or does not answer.
        """
        values: Mapping[str, object] = {STUDY: study.name, PATIENCE: float(patience_s)}
        config = self._folder / "run.toml"
        text = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
        write_private(config, text.encode())
        answer = self._flwr("run", str(self._folder / "app"), CONNECTION, "--run-config", str(config))
        try:
            return int(answer["run-id"])
        except (KeyError, ValueError, TypeError):
            raise RoundError("Flower gave the run no number", found=json.dumps(answer)[:200]) from None

    def run_status(self, run_id: int) -> RunStatus:
        """What became of a run; one that SuperLink does not know has ended: its database was lost.

        Raises:
            RoundError: SuperLink does not answer.
        """
        try:
            answer = self._flwr("ls", CONNECTION, "--run-id", str(run_id))
        except RoundError as error:
            if NOT_FOUND in str(error.found):
                return RunStatus(status=f"{ENDED}lost", details="SuperLink does not know it any more")
            raise
        try:
            (run,) = answer["runs"]
            return RunStatus(status=str(run["status"]), details=str(run["status-details"]))
        except (KeyError, ValueError, TypeError):
            raise RoundError(f"SuperLink does not know run {run_id}", found=json.dumps(answer)[:200]) from None

    def stop(self, run_id: int) -> None:
        """End a run, whatever it does; one that has ended is fine."""
        if not self.run_status(run_id).ended:
            self._flwr("stop", str(run_id), CONNECTION)

    def node_ids(self) -> set[int]:
        """Ids of the nodes that are let in. Flower lists for ever those that were shut out, too.

        Raises:
            RoundError: SuperLink does not answer.
        """
        try:
            return {int(node["node-id"]) for node in self._flwr("supernode", "ls", CONNECTION)["nodes"]
                    if node["status"] != UNREGISTERED}  # fmt: skip
        except (KeyError, ValueError, TypeError):
            raise RoundError("SuperLink does not list its nodes") from None

    # --- inside ---

    def end(self) -> None:
        """End the command that is running, from another thread, and begin no other: this process is ending."""
        with self._lock:
            self._ending = True
            if self._running is not None:
                self._running.kill()
            if self._shell is not None:
                self._shell.kill()

    @contextlib.contextmanager
    def several(self) -> Iterator[None]:
        """Inside, commands share one start of Flower's command line, made with the first. For one thread at a time."""
        self._several = True
        try:
            yield
        finally:
            self._several = False
            with self._lock:
                shell, self._shell = self._shell, None
            if shell is not None:
                shell.close()

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        words = [*arguments, "--format", "json"]
        code, output, said = self._share(words) if self._several else self._run(words)
        try:
            answer = json.loads(output)
        except ValueError:
            answer = {}
        if code or not isinstance(answer, dict) or not answer.get("success", True):
            words_said = (said or output).strip()[-300:]
            raise RoundError(f"SuperLink refuses `flwr {arguments[0]}`", found=words_said or code,
                             remedy=f"read {self._folder / 'logs'}") from None  # fmt: skip
        return answer

    def _share(self, arguments: list[str]) -> Done:
        with self._lock:
            self._still_wanted(arguments[0])
            if self._shell is None:
                self._shell = FlowerShell(environment=self.environment(), folder=self._folder / "empty")
            shell = self._shell
        try:
            done = shell.run(arguments, timeout_s=COMMAND_S)
        except TimeoutError:
            raise RoundError(f"SuperLink does not answer `flwr {arguments[0]}`", found=f"{COMMAND_S:g} s") from None
        self._still_wanted(arguments[0])
        return done

    def _run(self, arguments: list[str]) -> Done:
        name = arguments[0]
        with self._lock:
            self._still_wanted(name)
            self._running = subprocess.Popen([flower_command("flwr"), *arguments], env=self.environment(),
                                             cwd=self._folder / "empty", stdin=subprocess.DEVNULL,
                                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        with self._running as process:
            try:
                output, said = process.communicate(timeout=COMMAND_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RoundError(f"SuperLink does not answer `flwr {name}`", found=f"{COMMAND_S:g} s") from None
        with self._lock:
            self._running = None
            self._still_wanted(name)
        return process.returncode, output.decode("utf-8", "replace"), said.decode("utf-8", "replace")

    def _still_wanted(self, name: str) -> None:
        if self._ending:
            raise RoundError(f"`flwr {name}` was cut short: the coordinator is ending")
