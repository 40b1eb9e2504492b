"""One worker process that reads films for the pool: `python -m shared_model.imaging.worker FD`; started by pool only.

A process of its own, because decoders are C libraries fed with untrusted bytes: what kills one costs one film. It
speaks JSON and raw pixels over a socket to its parent (no pickle), with memory limited, one thread, and nothing on its
standard streams.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from shared_model.errors import ImagingError
from shared_model.imaging.config import PipelineConfig
from shared_model.imaging.policy import AdmissionPolicy
from shared_model.imaging.view import View, prepare_view, read_header
from shared_model.imaging.wire import encode_error

_BASE_BYTES, _BYTES_A_PIXEL = 1 << 30, 64  # measured peak: 0.2 GB of interpreter and some 40 bytes a pixel
_RESERVED_BYTES = 4 << 30  # address space that is mapped and never touched: code, and arenas of threads


def main(descriptor: int) -> None:
    """Serve until the parent closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    with Connection(descriptor) as parent:
        settings = json.loads(parent.recv_bytes())
        config = PipelineConfig(**settings["config"])
        policy = AdmissionPolicy(**settings["policy"])
        _limit_itself(config)
        parent.send_bytes(b"ready")
        while True:
            try:
                task = json.loads(parent.recv_bytes())
            except (EOFError, ConnectionResetError):
                return
            _answer(parent, task, config, settings["declared_spacing_mm"], policy)


def _limit_itself(config: PipelineConfig) -> None:
    """Memory by the largest film that may come; no core dump, which would hold a picture and a name; no file.

    RLIMIT_DATA bounds what a decoder can allocate; RLIMIT_AS also what it maps, with room for what libraries reserve.
    """
    memory = _BASE_BYTES + _BYTES_A_PIXEL * config.max_pixels + 3 * config.max_bytes
    for kind, limit in (
        (resource.RLIMIT_DATA, memory), (resource.RLIMIT_AS, memory + _RESERVED_BYTES), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):  # fmt: skip
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _answer(
    parent: Connection, task: dict[str, str], config: PipelineConfig, declared: float | None, policy: AdmissionPolicy
) -> None:
    try:
        work = prepare_view if task["work"] == "prepare" else read_header
        result = work(Path(task["path"]), config, declared_spacing_mm=declared, policy=policy)
    except ImagingError as error:
        parent.send_bytes(json.dumps({"error": encode_error(error)}).encode())
        return
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "pixels"}
    kind = "view" if isinstance(result, View) else "film"
    parent.send_bytes(json.dumps({kind: values}).encode())
    if isinstance(result, View):
        parent.send_bytes(np.ascontiguousarray(result.pixels).data.cast("B"))


if __name__ == "__main__":
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # codecs write to standard error, and what they write is not under our control
        os.dup2(null, stream)
    main(int(sys.argv[1]))
