"""The Flower ServerApp: finds out where the study lies and hands over to the round loop.

At a coordinator (`MAMMOFED_HOME` in the environment) Flower's run configuration names a `study` of that home, and all
else is the home's: where it lies, whether it is to run at all, the key that signs its requests, which node was
enrolled as which party. Whoever reaches Flower's Control API, which has no login, can so start nothing that the
operator did not. Enrolled parties that are lost are waited for.

Elsewhere, for a study on one machine, nothing is signed, and `run-dir` is an absolute path with `protocol.json` and,
unless the protocol names public weights of the package, `initial.safetensors` in it (Flower starts this process in a
folder of its own). `patience-seconds` is how long to wait for sites to connect. A file `stop` in the run directory
stops the study after the round that is running; it is taken away when the study has stopped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.deploy.home import CoordinatorHome
from server.deploy.nodes import Nodes
from server.deploy.studies import STOP_FILE, Wish, find_study
from server.rounds.checkpoint import read_arrays
from server.rounds.events import Observer
from server.rounds.loop import run_study
from server.rounds.signer import ONE_MACHINE, one_machine_key, request_signer
from server.rounds.study import Bound
from shared_model.errors import ConfigError, QuorumError
from shared_model.flower_app import HOME, PATIENCE, RUN_DIR, STUDY
from shared_model.messages import Arrays
from shared_model.protocol import Protocol
from shared_model.signing import SigningKey
from shared_model.weights import find_public_weights

POLL_S = 0.5

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume the study.

    Raises:
        ConfigError: the run configuration is incomplete, or names a study that is not to run.
        SignatureError, StorageError: the signing key cannot be used.
        WeightsError: the initial weights are absent, or not those that the protocol names.
        QuorumError: the study did not complete; Flower then reports the run as failed, which plain Flower would not.
    """
    run_dir, study, patience_s = (context.run_config.get(key, "") for key in (RUN_DIR, STUDY, PATIENCE))
    home = os.environ.get(HOME)
    named = run_dir if home is None else study
    if not isinstance(named, str) or not named or not isinstance(patience_s, int | float) or (
        home is None and not Path(named).is_absolute()
    ):
        raise ConfigError(
            "Flower's run configuration is incomplete", found=sorted(context.run_config),
            expected=f"{f'{RUN_DIR} (absolute path)' if home is None else STUDY} and {PATIENCE} (number)",
        )  # fmt: skip
    if home is None:
        run(grid, Path(named), patience_s=float(patience_s))
        return
    there = CoordinatorHome.open(Path(home))
    run(grid, _wanted(there, named), patience_s=float(patience_s), bound=_bound(there.nodes),
        signing=there.signing_key, name=there.settings.name)  # fmt: skip


def run(
    grid: Grid, folder: Path, *, patience_s: float, observer: Observer = lambda _: None, bound: Bound | None = None,
    signing: SigningKey | None = None, name: str = "",
) -> None:  # fmt: skip
    """Run or resume the study of a run directory; raises as :func:`main`.

    Args:
        observer: told of every event.
        signing, name: the coordinator's; None: nothing is signed, or as for one machine where a secure sum needs it.
    """
    protocol = Protocol.read(folder / "protocol.json")
    if signing is None and protocol.summed:
        signing, name = one_machine_key(folder), ONE_MACHINE
    with _stop_when_asked(folder / STOP_FILE) as stop:
        outcome = run_study(
            grid=grid, protocol=protocol, run_dir=folder, initial=_initial(folder, protocol), observer=observer,
            stop=stop, patience_s=patience_s, waits_for_lost=bound is not None, bound=bound, signing=signing,
            signer=None if signing is None else request_signer(signing, name=name),
        )  # fmt: skip
    if outcome.status != "COMPLETE":
        raise QuorumError(f"the study is {outcome.status}", found=outcome.reason, remedy=f"resume it in {folder}")


def _wanted(home: CoordinatorHome, name: str) -> Path:
    """The folder of a study that the operator wants to run.

    Raises:
        ConfigError: there is none, or it is not to run.
    """
    study = find_study(home, name)
    if study.wanted().wish is not Wish.RUNNING:
        raise ConfigError(f"{name} is not to run", found=study.wanted().wish.value,
                          remedy="`mammofed server start`, or `resume`")  # fmt: skip
    return study.path


def _bound(nodes: Nodes) -> Bound:
    return lambda: {number: (node.site, node.role) for number, node in nodes.read().items()}


def _initial(folder: Path, protocol: Protocol) -> Arrays:
    """The initial weights: of the run directory, or those of the package by their hash. The loop verifies the hash."""
    path = folder / "initial.safetensors"
    if path.exists():
        return read_arrays(path)
    return find_public_weights(protocol.initial_weights.sha256)[0]


@contextmanager
def _stop_when_asked(path: Path) -> Iterator[threading.Event]:
    """An event that is set once somebody has made the file `path`.

    It is removed once the study has ended: whoever dies before that must not forget what it was told.
    """
    stop, ended = threading.Event(), threading.Event()

    def look() -> None:
        if path.exists():
            stop.set()

    def watch() -> None:
        while not ended.wait(POLL_S):
            look()

    look()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stop
        path.unlink(missing_ok=True)
    finally:
        ended.set()
        watcher.join()
