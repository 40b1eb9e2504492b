"""A real SuperNode reaches a real SuperLink through tunnel and gateway, with Flower's node authentication."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from client.deploy.identity import SiteIdentity
from client.deploy.tunnel import Tunnel
from client.privacy import egress
from client.trainer.server import listening
from server.enrolment.gateway import Upstream
from shared_model.messages import Frame, TrainReply, TrainRequest, decode, encode
from simulations.ports import held_ports
from tests.enrolled import Coordinator, post, response, until
from tests.flower_processes import PATIENCE_S, Link, process, superlink

MEGABYTES = 100


@pytest.mark.slow
def test_a_real_supernode_is_let_in_and_dropped_when_it_is_revoked(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path)
    north = coordinator.enrol("north")

    async def through(link: Link) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await link.ready()
            done = await asyncio.to_thread(link.flwr, "supernode", "register", north.folder / "node.pub", "hub")
            assert done.returncode == 0, done.stdout.decode()
            async with coordinator.gateway(Upstream(port=link.port, context=link.trust)) as door:
                settings = north.settings.model_copy(update={"port": door.port})
                identity = SiteIdentity(north.folder, settings, clock=coordinator.clock)
                async with Tunnel(identity) as tunnel:
                    with held_ports(1) as (port,), \
                         process("flower-supernode", "--superlink", f"127.0.0.1:{tunnel.port}",
                                 "--root-certificates", north.folder / "local-ca.pem", "--auth-supernode-private-key",
                                 north.folder / "node.key", "--isolation", "process", "--host", "127.0.0.1",
                                 "--port", port, folder=tmp_path, env=link.env):  # fmt: skip
                        await until(lambda: '"POST /v1/fleet/activate-node HTTP/1.1" 200' in link.log.read_text())
                        reader, writer = await asyncio.open_connection(
                            "127.0.0.1", door.port, ssl=north.context(), server_hostname="localhost"
                        )
                        writer.write(post(north, "/v1/control/list-runs"))
                        assert (await response(reader))[0] == 403
                        writer.transport.abort()
                        coordinator.enrolment.revoke("north")
                        await until(lambda: tunnel.status.reason == "revoked" and not door.connected())
        assert "/v1/control/list-runs" not in link.log.read_text()

    with superlink(tmp_path) as link:
        asyncio.run(through(link))


class Echo:
    """A trainer that returns the weights that it was sent."""

    def exchange(self, data: bytes, *, wanted: Callable[[], bool]) -> bytes:
        frame = decode(data)
        asked = frame.message
        assert isinstance(asked, TrainRequest)
        reply = TrainReply(site="north", study=asked.study, round=asked.round, attempt=asked.attempt,
                           weights_sha256=asked.weights_sha256, outcome="trained", seconds=0.0)  # fmt: skip
        return egress.Released(encode(Frame(reply, frame.arrays)), seal=egress._SEAL)


SENDER = '''
"""A ServerApp that sends one great message to the first node and writes down what came back."""
import json
import time
from pathlib import Path

import numpy as np
from flwr.serverapp import ServerApp

from server.aggregation.flower import Exchange
from shared_model.messages import Frame, TrainRequest, weights_sha256

app = ServerApp()


@app.main()
def main(grid, context):
    exchange = Exchange(grid)
    while not exchange.nodes():
        time.sleep(0.2)
    size = int(context.run_config["megabytes"]) * 1_000_000 // 4
    random = np.random.default_rng(1)
    weights = {f"layer.{i}": random.random(size // 5, dtype=np.float32) for i in range(5)}
    sha256 = weights_sha256(weights)
    request = TrainRequest(study="big", protocol_sha256="0" * 64, round=1, attempt=1, weights_sha256=sha256)
    (node,) = exchange.nodes()
    answer = exchange.ask({node: Frame(request, weights)}, timeout_s=float(context.run_config["timeout"]))[node]
    found = {"failure": answer.failure, "detail": answer.detail, "up": answer.bytes_up, "down": answer.bytes_down,
             "message": answer.frame.message.model_dump() if answer.frame else None,
             "same": answer.frame is not None and weights_sha256(answer.frame.arrays) == sha256}
    out = Path(context.run_config["out"])
    out.with_suffix(".part").write_text(json.dumps(found))
    out.with_suffix(".part").rename(out)
'''


def write_sender(folder: Path, out: Path) -> Path:
    folder.mkdir()
    (folder / "sender.py").write_text(SENDER)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "sender"\nversion = "1.0.0"\nlicense = "Apache-2.0"\n'
        '[tool.flwr.app]\npublisher = "mammofed"\n'
        '[tool.flwr.app.components]\nserverapp = "sender:app"\nclientapp = "client.app:app"\n'
        f'[tool.flwr.app.config]\nout = "{out}"\nmegabytes = {MEGABYTES}\ntimeout = {PATIENCE_S}\n'
    )
    return folder


@pytest.mark.slow
def test_a_message_of_a_hundred_megabytes_passes_both_ways_to_the_bit(tmp_path: Path) -> None:
    """From a ServerApp through SuperLink, gateway, tunnel, SuperNode, shim and socket to a trainer, and back."""
    coordinator, out = Coordinator(tmp_path), tmp_path / "out.json"
    north = coordinator.enrol("north")
    app = write_sender(tmp_path / "app", out)

    async def through(link: Link, socket: Path) -> None:
        node = {"trainer-socket": str(socket), "site": "north"}
        async with asyncio.timeout(2 * PATIENCE_S):
            await link.ready()
            done = await asyncio.to_thread(link.flwr, "supernode", "register", north.folder / "node.pub", "hub")
            assert done.returncode == 0, done.stdout.decode()
            async with coordinator.gateway(Upstream(port=link.port, context=link.trust)) as door:
                settings = north.settings.model_copy(update={"port": door.port})
                async with Tunnel(SiteIdentity(north.folder, settings, clock=coordinator.clock)) as tunnel:
                    with held_ports(1) as (port,), \
                         process("flower-supernode", "--superlink", f"127.0.0.1:{tunnel.port}",
                                 "--root-certificates", north.folder / "local-ca.pem", "--auth-supernode-private-key",
                                 north.folder / "node.key", "--host", "127.0.0.1", "--port", port,
                                 "--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in node.items()),
                                 folder=tmp_path, env=link.env):  # fmt: skip
                        run = await asyncio.to_thread(link.flwr, "run", app, "hub", "--format", "json")
                        assert json.loads(run.stdout)["success"], run.stdout.decode()
                        await until(out.exists)

    with (
        tempfile.TemporaryDirectory(prefix="mf-") as folder,
        listening({"north": Echo()}, Path(folder) / "t.sock"),  # type: ignore[dict-item]
        superlink(tmp_path, isolation="subprocess") as link,
    ):
        asyncio.run(through(link, Path(folder) / "t.sock"))
    found = json.loads(out.read_text())
    assert found["failure"] == "" and found["same"], found
    assert min(found["up"], found["down"]) > MEGABYTES * 1_000_000
