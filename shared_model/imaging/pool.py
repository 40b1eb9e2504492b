"""Reads many films in parallel worker processes, in order, in bounded memory; called by client/ingest and pre-training.

Not `concurrent.futures`: there one dead worker breaks the whole pool and takes every film in flight with it. Here each
worker has its own socket and answers in order, so the film at which it died is known and gets one more worker; if that
one dies too, the film is refused. Everything else in flight is given out again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Literal

from shared_model.errors import ImagingError, MammoFedError
from shared_model.imaging.admission import Film
from shared_model.imaging.config import PIPELINE_VERSION, PipelineConfig
from shared_model.imaging.policy import RULES_VERSION, AdmissionPolicy
from shared_model.imaging.reasons import refuse
from shared_model.imaging.view import View
from shared_model.imaging.wire import decode_reply

Progress = Callable[[int, int], None]
_AHEAD = 4  # films a worker holds: enough that it never waits for its parent
_WINDOW = 32  # films a worker may be ahead of the oldest one that is not done: bounds the memory of finished views
_START_SECONDS = 60.0
_ROOT = Path(__file__).resolve().parents[2]


class _Worker:
    """One process, its socket, and the films given to it that it has not answered yet, in order."""

    def __init__(self, settings: bytes) -> None:
        ours, theirs = socket.socketpair()
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")])),
        }  # fmt: skip
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "shared_model.imaging.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                ours.close()
                raise MammoFedError(
                    f"an imaging worker process does not start: {error.strerror}",
                    remedy="use fewer workers, or check the limits on processes and memory and that the user may run "
                           "this Python",
                ) from None  # fmt: skip
        self.connection = Connection(ours.detach())
        self.connection.send_bytes(settings)
        self.pending: deque[int] = deque()
        self.since = 0.0

    def wait_ready(self) -> None:
        with suppress(EOFError, OSError):
            if self.connection.poll(_START_SECONDS) and self.connection.recv_bytes() == b"ready":
                return
        self.stop()
        raise MammoFedError(
            "an imaging worker process does not start", found=f"exit code {self.process.returncode}",
            remedy="run `python -m shared_model.imaging.worker 0` in this environment and read what it says",
        )  # fmt: skip

    def give(self, index: int, work: str, path: Path) -> None:
        if not self.pending:
            self.since = time.monotonic()
        self.pending.append(index)
        self.connection.send_bytes(json.dumps({"work": work, "path": os.fspath(path)}).encode())

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class FilmPool:
    """Workers for some films; a context manager.

    Args:
        workers: processes, at least 1, each with one thread.
        declared_spacing_mm: spacing that the site states for films whose header has none, or None.
        policy: the site's own rules for films; None: the careful ones.
        film_seconds: after this long a film is given up and its worker replaced.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        workers: int,
        declared_spacing_mm: float | None = None,
        policy: AdmissionPolicy | None = None,
        film_seconds: float = 300.0,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}, expected at least 1")
        self._config, self._film_seconds = config, film_seconds
        settings = {
            "config": dataclasses.asdict(config), "declared_spacing_mm": declared_spacing_mm,
            "policy": dataclasses.asdict(policy or AdmissionPolicy()),
        }  # fmt: skip
        self._settings = json.dumps(settings).encode()
        self._workers: list[_Worker] = []
        self._count = workers
        self._suspects: set[int] = set()

    @property
    def config(self) -> PipelineConfig:
        """The pipeline that films are read with."""
        return self._config

    @property
    def settings_sha256(self) -> str:
        """Hex SHA-256 of everything but the film that decides what reading it gives."""
        versions = json.dumps([PIPELINE_VERSION, RULES_VERSION]).encode()
        return hashlib.sha256(versions + self._settings).hexdigest()

    def __enter__(self) -> FilmPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def run(
        self, work: Literal["prepare", "header"], paths: Sequence[Path], *, progress: Progress | None = None
    ) -> Iterator[tuple[int, View | Film | ImagingError]]:
        """(index, result) for each path in order; a refused film is a result, not an exception."""
        self._start(min(self._count, len(paths)))
        waiting = deque(range(len(paths)))
        self._suspects.clear()
        done: dict[int, View | Film | ImagingError] = {}
        for index in range(len(paths)):
            while index not in done:
                self._hand_out(waiting, work, paths, until=index + _WINDOW * self._count)
                self._collect(done, waiting)
            yield index, done.pop(index)
            if progress is not None:
                progress(index + 1, len(paths))

    def _start(self, count: int) -> None:
        fresh = [_Worker(self._settings) for _ in range(count - len(self._workers))]
        self._workers += fresh  # all are starting before the first is waited for
        for worker in fresh:
            worker.wait_ready()

    def _hand_out(self, waiting: deque[int], work: str, paths: Sequence[Path], *, until: int) -> None:
        for worker in self._workers:
            while waiting and waiting[0] < until and len(worker.pending) < _AHEAD:
                index = waiting.popleft()
                with suppress(OSError):  # it died just now: the film is pending, and collecting finds the death
                    worker.give(index, work, paths[index])

    def _collect(self, done: dict[int, View | Film | ImagingError], waiting: deque[int]) -> None:
        busy = {worker.connection: worker for worker in self._workers if worker.pending}
        for connection in wait(list(busy), timeout=1.0):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            try:
                result = decode_reply(json.loads(connection.recv_bytes()), connection.recv_bytes, self._config)
            except (EOFError, OSError):
                self._bury(worker, done, waiting)
                continue
            done[worker.pending.popleft()] = result
            worker.since = time.monotonic()
        for worker in busy.values():
            if worker.pending and time.monotonic() - worker.since > self._film_seconds:
                done[worker.pending.popleft()] = refuse("timed_out", expected=f"at most {self._film_seconds:g} s")
                self._replace(worker, waiting)

    def _bury(self, worker: _Worker, done: dict[int, View | Film | ImagingError], waiting: deque[int]) -> None:
        """A worker died. Once may be the machine's fault (memory, an operator); twice at one film is the film's."""
        if worker.pending[0] in self._suspects:
            done[worker.pending.popleft()] = refuse("decoder_crashed", found="two worker processes died at it")
        else:
            self._suspects.add(worker.pending[0])
        self._replace(worker, waiting)

    def _replace(self, worker: _Worker, waiting: deque[int]) -> None:
        """End a worker, give its films out again, and start another."""
        worker.stop()
        waiting.extendleft(reversed(worker.pending))
        fresh = _Worker(self._settings)
        self._workers[self._workers.index(worker)] = fresh
        fresh.wait_ready()


def prepare_views(
    paths: Sequence[Path],
    config: PipelineConfig,
    *,
    workers: int,
    progress: Progress | None = None,
    declared_spacing_mm: float | None = None,
    policy: AdmissionPolicy | None = None,
) -> Iterator[tuple[int, View | ImagingError]]:
    """Prepare many films in parallel, in the order of `paths`; a refused film comes as its error.

    Args:
        workers: processes of one thread each.
        progress: called with (films done, films in all).
        declared_spacing_mm, policy: see :func:`shared_model.imaging.prepare_view`.
    """
    with FilmPool(config, workers=workers, declared_spacing_mm=declared_spacing_mm, policy=policy) as pool:
        for index, result in pool.run("prepare", paths, progress=progress):
            assert not isinstance(result, Film)
            yield index, result
