"""A pool of trainer processes, each hosting one or more sites; started by the launcher, used by the local grid."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client import __file__ as client_file
from client.trainer.client import call
from client.trainer.config import SiteConfig
from client.trainer.server import THREAD_VARIABLES
from shared_model.alive import FOLDER as ALIVE
from shared_model.errors import ConfigError, TrainerError
from shared_model.messages import DescribeRequest, Frame, encode

POLL_S = 0.05
STOP_S = 8.0  # the trainer's own grace is 5 s
ROOT = Path(client_file).resolve().parent.parent


@dataclass
class Trainer:
    """One process of the pool. `lock` is held while it is started or restarted."""

    index: int
    files: tuple[Path, ...]
    sites: tuple[str, ...]
    socket: Path
    log: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None


class TrainerPool:
    """Trainer processes for some sites; a context manager.

    Args:
        site_files: each party's `site.json`; a site's name decides its node id, not its place in this list.
        log_dir: `trainer-<n>.log` are appended here; in `alive/` each party's trainer says that it is.
        processes: how many; None: as many as cores that this process may use, at most one a site.
        start_timeout_s: seconds until a starting trainer must answer.

    Raises:
        ConfigError: no site, or one named twice.
    """

    def __init__(
        self, site_files: Sequence[Path], *, log_dir: Path, processes: int | None, start_timeout_s: float
    ) -> None:
        configs = {path: SiteConfig.read(path) for path in site_files}
        names = [configs[path].site for path in site_files]
        if not names or len(set(names)) != len(names):
            raise ConfigError("a pool needs each site exactly once", found=names)
        self._timeout = start_timeout_s
        # Not in the run folder, whose name may be too long for a socket.
        self._folder = Path(tempfile.gettempdir()) / f"mammofed-{secrets.token_hex(8)}"
        log_dir.mkdir(parents=True, exist_ok=True)
        self._alive = (log_dir / ALIVE.name).absolute()
        count = min(processes or len(os.sched_getaffinity(0)), len(names))
        self.trainers = tuple(
            Trainer(index, tuple(files), tuple(configs[f].site for f in files), self._folder / f"{index}.sock",
                    log_dir / f"trainer-{index}.log")
            for index, files in enumerate(_share(configs, count))
        )  # fmt: skip
        self.nodes: Mapping[int, str] = dict(enumerate(in_order(configs.values()), start=1))
        self._by_site = {site: trainer for trainer in self.trainers for site in trainer.sites}

    def trainer(self, site: str) -> Trainer:
        """The process that hosts `site`."""
        return self._by_site[site]

    def start(self) -> None:
        """Start all processes side by side and wait until each answers.

        Raises:
            TrainerError: one ended or did not answer in time; all are stopped then.
        """
        try:
            self._folder.mkdir(mode=0o700)  # fails if somebody has it already
            shutil.rmtree(self._alive, ignore_errors=True)  # of a launcher that was killed
            self._alive.mkdir()
            for trainer in self.trainers:
                self._spawn(trainer)
            for trainer in self.trainers:
                self._wait(trainer)
        except BaseException:
            self.stop()
            raise

    def ensure(self, trainer: Trainer) -> None:
        """Start `trainer` again if it died.

        Raises:
            TrainerError: it does not come up in time.
        """
        with trainer.lock:
            if not trainer.alive:
                self._spawn(trainer)
                self._wait(trainer)

    def stop(self) -> None:
        """End all processes: politely, then by force. Harmless when they have ended already."""
        for trainer in self.trainers:
            if trainer.process is not None and trainer.process.stdin is not None:
                with contextlib.suppress(OSError):
                    trainer.process.stdin.close()
                trainer.process.terminate()
        deadline = time.monotonic() + STOP_S
        for trainer in self.trainers:
            if trainer.process is not None:
                try:
                    trainer.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    trainer.process.kill()
                    trainer.process.wait()
        for folder in (self._folder, self._alive):
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> TrainerPool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, trainer: Trainer) -> None:
        # -P: a folder named `client` where the user happens to be must not be taken for ours.
        command = [sys.executable, "-P", "-m", "client.trainer.server", "--socket", str(trainer.socket),
                   "--alive", str(self._alive), "--stop-with-stdin", *map(str, trainer.files)]  # fmt: skip
        if trainer.process is not None and trainer.process.stdin is not None:
            trainer.process.stdin.close()
        with trainer.log.open("ab") as log:
            trainer.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log,
                env=trainer_environment(trainer.index), cwd=self._folder,
                start_new_session=True,  # Ctrl-C in the terminal is the launcher's to handle: the round ends first
            )  # fmt: skip
        trainer.starts += 1

    def _wait(self, trainer: Trainer) -> None:
        """Until the trainer answers a describe call."""
        deadline = time.monotonic() + self._timeout
        request = encode(Frame(DescribeRequest()))
        while trainer.alive and time.monotonic() < deadline:
            if trainer.socket.exists():
                with contextlib.suppress(TrainerError):
                    call(trainer.socket, trainer.sites[0], request, min(5.0, self._timeout))
                    return
            time.sleep(POLL_S)
        ended = "" if trainer.alive else f"it ended with code {trainer.process.returncode if trainer.process else None}"
        raise TrainerError(
            f"the trainer of {', '.join(trainer.sites)} does not answer",
            found=ended or f"nothing in {self._timeout:g} s", expected="an answer to `describe`",
            remedy=f"read {trainer.log}; its last words: {_last_words(trainer.log)}",
        )  # fmt: skip


def in_order(configs: Iterable[SiteConfig]) -> list[str]:
    """Names of the parties by node id: sites by name, evaluators last."""
    return [c.site for c in sorted(configs, key=lambda c: (c.role == "evaluator", c.site))]


def _share(configs: Mapping[Path, SiteConfig], count: int) -> list[list[Path]]:
    """Parties over processes: the largest cohort first, each to the least loaded process (Graham 1969).

    The evaluator comes last and counts nothing, because it computes while the others wait.
    """
    loads = [0] * count
    parts: list[list[Path]] = [[] for _ in range(count)]
    sized = {path: 0 if c.role == "evaluator" else _size(c.cohort) for path, c in configs.items()}
    for path in sorted(configs, key=lambda p: (-sized[p], configs[p].role == "evaluator", configs[p].site)):
        least = min(range(count), key=lambda i: (loads[i], len(parts[i]), i))
        parts[least].append(path)
        loads[least] += sized[path]
    return parts


def _size(cohort: Path) -> int:
    """Bytes of a cohort's films, a fair measure of its training time; 1 where the trainer will complain by itself."""
    try:
        return (cohort / "pixels.npy").stat().st_size
    except OSError:
        return 1


def trainer_environment(index: int) -> dict[str, str]:
    """The trainer's environment.

    Threads must be settled before torch is imported: processes that share cores and spin while waiting slow each other
    six- to elevenfold (measured).
    """
    environment = dict(os.environ)
    environment.update(dict.fromkeys(THREAD_VARIABLES, "1"), OMP_WAIT_POLICY="passive")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = gpus.split(",") if gpus is not None else [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    if len(known) > 1:  # spread the processes over the GPUs; several share one when there are more of them
        environment["CUDA_VISIBLE_DEVICES"] = known[index % len(known)]
    return environment


def _last_words(log: Path) -> str:
    try:
        lines = log.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][-300:] if lines else ""
