"""Flower's own processes for tests: a SuperLink with node authentication on a free port, and whatever talks to it."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared_model.certificates import loopback_credentials
from shared_model.private_files import write_private
from simulations.ports import held_ports
from tests.enrolled import until

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 400.0  # Flower's processes import for some seconds, on a busy machine for many


@contextmanager
def process(
    name: str, *arguments: object, folder: Path, env: Mapping[str, str], program: Path | None = None
) -> Iterator[Path]:
    """One of Flower's processes; yields its log. program: what stands for it."""
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        command = [str(program or BIN / name), *map(str, arguments)]
        started = subprocess.Popen(command, cwd=folder, env=env, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield log
        finally:
            started.terminate()
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


@dataclass(frozen=True)
class Link:
    """A SuperLink. env: what Flower's processes are told."""

    folder: Path
    port: int
    log: Path
    env: Mapping[str, str]
    trust: ssl.SSLContext

    def flwr(self, *arguments: object) -> subprocess.CompletedProcess[bytes]:
        """One of Flower's commands, to its end."""
        command = [str(BIN / "flwr"), *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, check=False)

    async def ready(self) -> None:
        await until(lambda: "Application startup complete" in self.log.read_text())


@contextmanager
def superlink(folder: Path, *, isolation: str = "process") -> Iterator[Link]:
    """A SuperLink that is just starting; `hub` in Flower's commands."""
    with held_ports(1) as (port,), _superlink(folder, port, isolation) as link:
        yield link


@contextmanager
def _superlink(folder: Path, port: int, isolation: str) -> Iterator[Link]:
    both, public = loopback_credentials(now=time.time())
    certificate, key = folder / "link.pem", folder / "link.key"
    write_private(certificate, public)
    write_private(key, both[: both.index(b"-----BEGIN CERTIFICATE")])
    home = folder / "home"
    home.mkdir()
    # As the daemon starts it: Flower's own gives a write five seconds to find its database free, and then up.
    program = folder / "flower-superlink"
    program.write_text(f"#!{sys.executable} -P\nfrom server.deploy.superlink import main\n\nmain()\n")
    program.chmod(0o755)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "hub"\n[superlink.hub]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{certificate}"\n'
    )
    env = {
        **os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": str(ROOT), "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    }  # fmt: skip
    with process("flower-superlink", "--host", "127.0.0.1", "--port", port, "--ssl-ca-certfile", certificate,
                 "--ssl-certfile", certificate, "--ssl-keyfile", key, "--enable-supernode-auth", "--database",
                 folder / "state.db", "--isolation", isolation, "--disable-runtime-dependency-installation",
                 folder=folder, env=env, program=program) as log:  # fmt: skip
        yield Link(folder, port, log, env, ssl.create_default_context(cadata=public.decode()))
