"""Plain Flower on this machine with real processes, once, to its end; started by `contest` under the probe.

    python -m simulations.benchmarks.deployment.federation SETTINGS.json

SuperLink with TLS and node authentication, a SuperNode for each party behind a relay that counts bytes, and one run of
an app. Writes `wire.json` beside the settings. Whatever it started ends with it, by the probe's hand.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared_model.certificates import loopback_credentials, new_node_key, node_key_file
from shared_model.private_files import write_private
from simulations.benchmarks.deployment.wire import Relay

START_LIMIT_S, COMMAND_LIMIT_S = 300.0, 300.0  # a SuperLink answers after some 8 s on a quiet machine
POLL_S = 0.1
HOME = '[superlink]\ndefault = "hub"\n[superlink.hub]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{ca}"\n'


@dataclass(frozen=True, kw_only=True)
class Node:
    """A SuperNode. config: its node configuration."""

    name: str
    config: dict[str, str | int]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is started. out: a folder for keys, logs and Flower's homes; app: folder of the Flower app."""

    out: str
    app: str
    nodes: tuple[Node, ...]

    def write(self, path: Path) -> None:
        """As the process reads it."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Settings:
        """What :meth:`write` wrote."""
        values = json.loads(path.read_bytes())
        return cls(**values | {"nodes": tuple(Node(**node) for node in values["nodes"])})


class Federation:
    """The processes of one run."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._out = settings, Path(settings.out)
        self._bin, self._port = Path(sys.executable).parent, free_port()
        for name in ("logs", "empty"):
            (self._out / name).mkdir(parents=True)
        self._certificate = self._out / "link.pem"

    def run(self, relay: Relay) -> int:
        """Start all, run the app, and sample the wire meanwhile; the exit code of `flwr run`."""
        self._certify()
        self._superlink()
        for node in self._settings.nodes:
            self._supernode(node, relay.to(self._port))
        run = self._start("run", (str(self._bin / "flwr"), "run", self._settings.app, "hub", "--stream"))
        while run.poll() is None:
            relay.traffic.sample()
            time.sleep(POLL_S)
        relay.traffic.sample()
        return int(run.returncode)

    def _certify(self) -> None:
        both, public = loopback_credentials(now=time.time())
        write_private(self._out / "link.key", both[: both.index(b"-----BEGIN CERTIFICATE")])
        write_private(self._certificate, public)

    def _superlink(self) -> None:
        ca = str(self._certificate)
        link = self._start("superlink", (
            str(self._bin / "flower-superlink"), "--host", "127.0.0.1", "--port", str(self._port),
            "--ssl-ca-certfile", ca, "--ssl-certfile", ca, "--ssl-keyfile", str(self._out / "link.key"),
            "--enable-supernode-auth", "--database", str(self._out / "state.db"), "--isolation", "subprocess",
            "--disable-runtime-dependency-installation",
        ))  # fmt: skip
        deadline = time.monotonic() + START_LIMIT_S
        while not self._healthy():
            if link.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("SuperLink does not come up")
            time.sleep(POLL_S)

    def _healthy(self) -> bool:
        context = ssl.create_default_context(cafile=str(self._certificate))
        try:
            with urllib.request.urlopen(f"https://127.0.0.1:{self._port}/health", timeout=1.0, context=context) as it:
                return bool(it.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _supernode(self, node: Node, port: int) -> None:
        key = new_node_key()
        private, public = self._out / f"{node.name}.key", self._out / f"{node.name}.pub"
        write_private(private, node_key_file(key))
        write_private(public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        register = (str(self._bin / "flwr"), "supernode", "register", str(public), "hub")
        if self._start(f"register-{node.name}", register).wait(COMMAND_LIMIT_S):
            raise SystemExit(f"SuperLink does not take the node of {node.name}")
        config = " ".join(f"{name}={json.dumps(value)}" for name, value in node.config.items())
        self._start(node.name, (
            str(self._bin / "flower-supernode"), "--superlink", f"127.0.0.1:{port}",
            "--root-certificates", str(self._certificate), "--auth-supernode-private-key", str(private),
            "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", config,
        ))  # fmt: skip

    def _start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        home = self._out / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(HOME.format(port=self._port, ca=self._certificate), encoding="utf-8")
        path = os.pathsep.join([str(self._bin), os.environ.get("PATH", os.defpath)])
        environment = {**os.environ, "FLWR_HOME": str(home), "PATH": path}
        with (self._out / "logs" / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                    cwd=self._out / "empty")  # fmt: skip


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(path: Path) -> int:
    """Run the federation of a settings file."""
    settings = Settings.read(path)
    with Relay() as relay:
        code = Federation(settings).run(relay)
        (Path(settings.out) / "wire.json").write_text(json.dumps(relay.traffic.timeline), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
