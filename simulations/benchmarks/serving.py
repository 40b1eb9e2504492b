"""Latency of `mammofed site serve` at 1, 4 and 16 callers at once, decoding included; a section of the bench.

Once with the simulator's films of 160 x 128, where the model counts, and once with exams of a large detector, where
decoding does. The process, the socket, DICOM and model are real; the model is the default one with public weights,
which is as fast as any trained one of its size. Callers are threads that send their next request when the last was
answered.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import yaml

from client.ingest.example import write_example
from shared_model.cohort.views import VIEWS
from shared_model.errors import MammoFedError
from simulations.benchmarks.films import SIZES, write_films
from simulations.benchmarks.table import Row
from simulations.hospitals.defaults import default_hospitals
from simulations.population import generate
from simulations.untrained import write_untrained_release

CALLERS, REQUESTS = (1, 4, 16), 48  # requests of each number of callers together
LARGE_REQUESTS = {1: 6, 4: 12, 16: 16}  # an exam of full size takes seconds
LARGE_SYNTAX = "JPEG lossless"  # what most archives hold
LIMIT_S = 600.0  # sixteen exams of full size at once, on a machine that others use as well


def measure() -> list[Row]:
    """Median and 95th percentile of seconds a request, and requests a second.

    Raises:
        MammoFedError: the service did not start or refused a request.
    """
    with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as name:
        folder = Path(name)
        write_untrained_release(folder / "model")
        site_yaml, exam = _hospital(folder)
        port = _free_port()
        command = [sys.executable, "-m", "mammofed", "site", "serve", str(site_yaml), "--model", str(folder / "model"),
                   "--port", str(port)]  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(port, process, folder / "log")
            body = json.dumps({"films": exam, "clinical": {"age": 54, "breast_density": "c"}}).encode()
            _ask(port, body)
            rows = [row for callers in CALLERS for row in _rows(port, body, callers, REQUESTS, "small films")]
            large = _large(folder)
            _ask(port, large)
            for callers in CALLERS:
                rows += _rows(port, large, callers, LARGE_REQUESTS[callers], "full size")
        finally:
            process.terminate()
            process.wait()
    return rows


def _rows(port: int, body: bytes, callers: int, requests: int, what: str) -> list[Row]:
    took: list[float] = []
    faults: list[str] = []
    left = threading.Semaphore(requests)

    def call() -> None:
        while left.acquire(blocking=False):
            began = time.perf_counter()
            try:
                _ask(port, body)
            except MammoFedError as error:
                faults.append(str(error))
                return
            took.append(time.perf_counter() - began)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise MammoFedError("the service refused a request", found=faults[0])
    ordered, who = sorted(took), f"{what}, {callers} caller{'s' if callers > 1 else ''}"
    return [
        Row(name=f"{who}, half of the exams within", value=1e3 * ordered[len(ordered) // 2], unit="ms"),
        Row(name=f"{who}, 95 in 100 within", value=1e3 * ordered[int(0.95 * (len(ordered) - 1))], unit="ms"),
        Row(name=f"{who}, exams", value=len(ordered) / (time.perf_counter() - began), unit="/s"),
    ]  # fmt: skip


def _large(folder: Path) -> bytes:
    """A request with an exam of four films of a large detector."""
    size = next(iter(SIZES))
    films = [write_films(folder, size=size, view=view, syntaxes=[LARGE_SYNTAX])[LARGE_SYNTAX] for view in VIEWS]
    encoded = [base64.b64encode(film.read_bytes()).decode() for film in films]
    return json.dumps({"films": encoded, "clinical": {"age": 54, "breast_density": "c"}}).encode()


def _hospital(folder: Path) -> tuple[Path, list[str]]:
    """A site file of no films, and the four films of a synthetic woman in base64."""
    population = default_hospitals(sites=1, patients=8, held_out=8, seed=0, film_height=160, film_width=128,
                                   film_spacing_mm=1.25, conspicuity=5.0)  # fmt: skip
    source = generate(population, folder / "made", workers=os.cpu_count() or 1)[population.hospitals[0].name]
    exams = (sorted(women.glob("*.dcm")) for women in sorted((source / "dicom").iterdir()))
    exam = next(films for films in exams if len(films) == 4)
    path = write_example(folder / "site")
    values = yaml.safe_load(path.read_text("utf-8"))
    values["films"] = []
    values["clinical"] = [{"kind": "csv", "path": str(source / "clinical.csv")}]
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path, [base64.b64encode(film.read_bytes()).decode() for film in exam]


def _ask(port: int, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request("POST", "/v1/predictions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except OSError as error:
        raise MammoFedError("the service did not answer", found=str(error)) from None
    finally:
        connection.close()
    if answer.status != 200:
        raise MammoFedError("the service refused a request", found=f"{answer.status} {text[:300]!r}")


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.1)
    raise MammoFedError("the service did not start", found=log.read_text(errors="replace")[-500:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
