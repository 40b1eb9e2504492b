"""A second vendor's PACS, dcmqrscp of dcmtk, which answers, delivers and refuses in other ways than Orthanc."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.ingest.outbox import Outbox, OutboxTarget, Sent
from client.ingest.sources import Collected, DimseSource, Received
from client.ingest.sources.retry import Backoff
from tests.films import write_film
from tests.orthanc import Namespace, skip_without_orthanc
from tests.pacs_films import PERIOD, VIEWS, HashingDeidentifier, content, film
from tests.ports import free_port

CONFIGURATION = """
NetworkTCPPort = 4242
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
us = (MAMMOFED, 127.0.0.1, 11113)
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
QRSCP {folder} RW (200, 1024mb) ANY
AETable END
"""


@dataclass
class Pacs:
    port: int
    receive_port: int
    folder: Path


@pytest.fixture(scope="module")
def qrscp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """With eight films of two women, one object of another modality, all Explicit VR."""
    skip_without_orthanc()  # it needs the namespace too
    if shutil.which("dcmqrscp") is None:
        pytest.skip("no dcmqrscp; install it: apt-get install -y --no-install-recommends dcmtk")
    folder = tmp_path_factory.mktemp("qrscp")
    (folder / "db").mkdir()
    (folder / "cfg").write_text(CONFIGURATION.format(folder=folder / "db"))
    files = [write_film(folder / f"{woman}{view}.dcm", film(woman, view)) for woman in (1, 2) for view in VIEWS]
    files.append(write_film(folder / "us.dcm", film(3, "L_CC", Modality="US")))
    receive_port = free_port()
    namespace = Namespace(folder, inward={4242: ""}, outward={11113: receive_port})
    command = namespace.command(["dcmqrscp", "--config", str(folder / "cfg")])
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        store = namespace.command(["storescu", "--call", "QRSCP", "127.0.0.1", "4242", *map(str, files)])
        until = time.monotonic() + 120
        while (done := subprocess.run(store, capture_output=True, text=True, check=False)).returncode:
            assert time.monotonic() < until and running.poll() is None, done.stderr + (folder / "log").read_text()
            time.sleep(0.1)
        yield Pacs(namespace.ports[4242], receive_port, folder)
    finally:
        running.kill()
        running.wait()
        namespace.close()


def collect(pacs: Pacs, folder: Path, way: str, **changes: Any) -> Collected:
    move = {"receive_port": pacs.receive_port, "receive_address": "127.0.0.1"} if way == "move" else {}
    source = DimseSource(**{
        "host": "127.0.0.1", "port": pacs.port, "called_ae": "QRSCP", "retrieve": way, "studies": PERIOD,
        "quiet_seconds": 0.2, "timeout_seconds": 60, **move, **changes,
    })  # fmt: skip
    with Received(folder) as store:
        return source.collect(store, HashingDeidentifier(), backoff=Backoff(1, first_seconds=0.1))


@pytest.mark.parametrize("way", ["move", "get"])
def test_films_come_whole_and_then_one_by_one(qrscp: Pacs, tmp_path: Path, way: str) -> None:
    got = collect(qrscp, tmp_path / "store", way)
    assert (got.films, got.new, got.incomplete, got.failed) == (8, 8, 0, {})
    whole = content(tmp_path / "store")
    paths = sorted((tmp_path / "store" / "films").rglob("*.dcm"))
    for path in (paths[0], paths[-1]):
        path.unlink()
    again = collect(qrscp, tmp_path / "store", way)
    assert (again.new, again.present, again.incomplete) == (2, 6, 0)
    assert content(tmp_path / "store") == whole


def test_both_ways_bring_the_same(qrscp: Pacs, tmp_path: Path) -> None:
    women = tmp_path / "ids.csv"
    women.write_text("PID-77002\n")
    for way in ("move", "get"):
        assert collect(qrscp, tmp_path / way, way, studies={**PERIOD, "patients": women}).new == 4
    assert content(tmp_path / "move") == content(tmp_path / "get")


def test_results_go_back(qrscp: Pacs, tmp_path: Path) -> None:
    with Outbox(tmp_path / "outbox") as box:
        box.put(film(1, "L_CC", number=9, Modality="OT"))
        target = OutboxTarget(host="127.0.0.1", port=qrscp.port, called_ae="QRSCP", timeout_seconds=60)
        assert box.send(target) == Sent(sent=1)
