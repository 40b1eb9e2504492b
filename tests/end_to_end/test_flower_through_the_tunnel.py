"""A real SuperNode reaches a real SuperLink through tunnel and gateway, with Flower's node authentication."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.deploy.identity import SiteIdentity
from client.deploy.tunnel import Tunnel
from server.enrolment.gateway import Upstream
from shared_model.certificates import loopback_credentials
from shared_model.private_files import write_private
from tests.enrolled import Coordinator, post, response, until

BIN = Path(sys.executable).parent
PATIENCE_S = 150.0  # Flower's processes import for some seconds, on a busy machine for many


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def process(name: str, *arguments: object, folder: Path, env: dict[str, str]) -> Iterator[Path]:
    """One of Flower's processes; yields its log."""
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        command = [str(BIN / name), *map(str, arguments)]
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


@pytest.mark.slow
def test_a_real_supernode_is_let_in_and_dropped_when_it_is_revoked(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path)
    north = coordinator.enrol("north")
    both, public = loopback_credentials(now=time.time())
    certificate, key = tmp_path / "link.pem", tmp_path / "link.key"
    write_private(certificate, public)
    write_private(key, both[: both.index(b"-----BEGIN CERTIFICATE")])
    trust = ssl.create_default_context(cadata=public.decode())
    link, node = free_port(), free_port()
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "hub"\n[superlink.hub]\naddress = "127.0.0.1:{link}"\n'
        f'root-certificates = "{certificate}"\n'
    )
    env = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

    async def through(log: Path) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await until(lambda: "Application startup complete" in log.read_text())
            register = [str(BIN / "flwr"), "supernode", "register", str(north.folder / "node.pub"), "hub"]
            done = await asyncio.to_thread(subprocess.run, register, cwd=tmp_path, env=env, capture_output=True)
            assert done.returncode == 0, done.stdout.decode()
            async with coordinator.gateway(Upstream(port=link, context=trust)) as door:
                settings = north.settings.model_copy(update={"port": door.port})
                identity = SiteIdentity(north.folder, settings, clock=coordinator.clock)
                async with Tunnel(identity) as tunnel:
                    with process("flower-supernode", "--superlink", f"127.0.0.1:{tunnel.port}",
                                 "--root-certificates", north.folder / "local-ca.pem", "--auth-supernode-private-key",
                                 north.folder / "node.key", "--isolation", "process", "--host", "127.0.0.1",
                                 "--port", node, folder=tmp_path, env=env):  # fmt: skip
                        await until(lambda: '"POST /v1/fleet/activate-node HTTP/1.1" 200' in log.read_text())
                        reader, writer = await asyncio.open_connection(
                            "127.0.0.1", door.port, ssl=north.context(), server_hostname="localhost"
                        )
                        writer.write(post(north, "/v1/control/list-runs"))
                        assert (await response(reader))[0] == 403
                        writer.transport.abort()
                        coordinator.enrolment.revoke("north")
                        await until(lambda: tunnel.status.reason == "revoked" and not door.connected())
        assert "/v1/control/list-runs" not in log.read_text()

    with process("flower-superlink", "--host", "127.0.0.1", "--port", link, "--ssl-ca-certfile", certificate,
                 "--ssl-certfile", certificate, "--ssl-keyfile", key, "--enable-supernode-auth", "--database",
                 tmp_path / "state.db", "--isolation", "process", "--disable-runtime-dependency-installation",
                 folder=tmp_path, env=env) as log:  # fmt: skip
        asyncio.run(through(log))
