"""A SuperLink of our own for one run, and Flower's command line before it; used by :mod:`run` beside this file.

Everything lies in one folder: Flower's home (nothing of ~/.flwr is read or written), the app, and an empty directory
that all processes start in, because Ray's workers import from where the SuperLink was started before they look
anywhere else. The SuperLink is started by us and not by `flwr run`, whose own would stay behind.

The SuperLink listens on the loopback interface without authentication, as Flower's local one does: other users of this
machine could send it work while a study runs. Use the local engine on a machine that is shared with people you do not
trust.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

from shared_model import guard
from shared_model.errors import ConfigError, TrainerError
from simulations.engine.pool import trainer_environment
from simulations.ports import held_ports

POLL_S = 0.1
STOP_S = guard.GRACE_S + guard.KILL_S + 5.0
STATUS_S = 60.0  # `flwr ls` takes 2 s, more on a machine that is busy
NAME = "mammofed"

APP = """\
# Written by `mammofed simulate engine=flower`. No code travels in this app: both components belong to the release that
# is installed, and films, weights and ledgers stay where they are.
[project]
name = "mammofed-study"
version = "{version}"
description = "One study on this machine or a Ray cluster"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "mammofed"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "simulations.engine.flower.clientapp:app"

[tool.flwr.app.config]
run-dir = {run_dir}
patience-seconds = {patience_s}
"""

HOME = """\
[superlink]
default = "{name}"

[superlink.{name}]
address = "127.0.0.1:{port}"
insecure = true
"""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What Flower says of the run. status: `finished:completed`, `finished:failed`, `running`, ...; details: words."""

    status: str
    details: str


class SuperLink:
    """A context manager: started and answering inside, gone with all its processes after it.

    Args:
        folder: Flower's own things of this run; made where it is absent.
        log_dir: `flower-superlink.log` and `flower-run.log` are appended here.
        ray_address: of a cluster; None: Ray is started by Flower, in a temporary folder of its own.

    Raises:
        ConfigError: Flower's commands are not installed.
        TrainerError: the SuperLink does not come up.
    """

    def __init__(self, folder: Path, *, log_dir: Path, ray_address: str | None, start_timeout_s: float) -> None:
        self._folder, self._log_dir, self._timeout = folder, log_dir, start_timeout_s
        self._ray_address = ray_address
        self._processes: list[subprocess.Popen[bytes]] = []
        self._temporary, self._held = Path(), ExitStack()

    def __enter__(self) -> Self:
        self._commands = {name: _command(name) for name in ("flower-superlink", "flwr")}
        for name in ("home", "empty"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(tempfile.mkdtemp(prefix="mammofed-"))
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, *, run_dir: Path, patience_s: float, federation: str) -> subprocess.Popen[bytes]:
        """Start the study's run; the process returned ends with it. Its exit code says nothing: ask :meth:`status`."""
        app = self._folder / "app"
        app.mkdir(exist_ok=True)
        text = APP.format(version=version("mammofed"), run_dir=json.dumps(str(run_dir), ensure_ascii=False),
                          patience_s=float(patience_s))  # fmt: skip
        (app / "pyproject.toml").write_text(text, encoding="utf-8")
        command = [self._commands["flwr"], "run", str(app), NAME, "--stream", "--federation-config", federation]
        return self._guarded(command, "flower-run.log")

    def status(self) -> RunStatus:
        """What became of the one run that this SuperLink has had."""
        command = [self._commands["flwr"], "ls", NAME, "--format", "json"]
        try:
            answer = subprocess.run(command, env=self._environment(), cwd=self._folder / "empty", capture_output=True,
                                    timeout=STATUS_S, check=False)  # fmt: skip
            (run,) = json.loads(answer.stdout)["runs"]
            return RunStatus(status=str(run["status"]), details=str(run["status-details"]))
        except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
            return RunStatus(status="unknown", details=f"Flower does not say ({type(error).__name__})")

    @property
    def alive(self) -> bool:
        """Whether the SuperLink still runs."""
        return bool(self._processes) and self._processes[0].poll() is None

    def _start(self) -> None:
        (port,) = self._held.enter_context(held_ports(1))  # until the SuperLink, which imports for seconds, has it
        (self._folder / "home" / "config.toml").write_text(HOME.format(name=NAME, port=port))
        command = [self._commands["flower-superlink"], "--insecure", "--simulation", "--host", "127.0.0.1", "--port",
                   str(port), "--disable-runtime-dependency-installation"]  # fmt: skip
        self._guarded(command, "flower-superlink.log")
        deadline = time.monotonic() + self._timeout
        while self.alive and time.monotonic() < deadline:
            if _healthy(port):
                return
            time.sleep(POLL_S)
        log = self._log_dir / "flower-superlink.log"
        raise TrainerError(
            "Flower's SuperLink does not answer", found="it ended" if not self.alive else f"{self._timeout:g} s",
            expected=f"an answer on 127.0.0.1:{port}", remedy=f"read {log}",
        )  # fmt: skip

    def _guarded(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self._log_dir / log).open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-P", guard.__file__, *command], stdin=subprocess.PIPE, stdout=stream, stderr=stream,
                env=self._environment(), cwd=self._folder / "empty",
                start_new_session=True,  # Ctrl-C in the terminal is the launcher's to handle: the round ends first
            )  # fmt: skip
        self._processes.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        """As trainer processes have it, and: nothing is told to anybody, nothing is fetched or installed."""
        environment = trainer_environment(0)
        if "CUDA_VISIBLE_DEVICES" in os.environ:  # which of them an actor sees is Ray's to say
            environment["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            environment.pop("CUDA_VISIBLE_DEVICES", None)
        environment |= {
            "FLWR_HOME": str(self._folder / "home"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no share of a GPU: none seen
            "RAY_worker_niceness": "0",  # with Ray's 15, actors starve beside anything else that computes
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }  # fmt: skip
        if self._ray_address is None:
            environment.pop("RAY_ADDRESS", None)
            environment["RAY_TMPDIR"] = str(self._temporary)  # not /tmp/ray: a cluster of somebody else may be there
        else:
            environment["RAY_ADDRESS"] = self._ray_address
        return environment

    def _stop(self) -> None:
        """End what runs, the newest first; harmless for what has ended."""
        for process in reversed(self._processes):
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._held.close()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _command(name: str) -> str:
    """Flower's command that belongs to this Python, or else the one in PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ConfigError(f"Flower's command `{name}` is not installed", expected=f"beside {sys.executable}",
                          remedy="install mammofed again, with its dependencies")  # fmt: skip
    return found


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
