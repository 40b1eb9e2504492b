"""The Flower ServerApp: reads where the study lies from Flower's run configuration and hands over to the round loop.

Run configuration: `run-dir`, an absolute path with `protocol.json` and, unless the protocol names public weights of the
package, `initial.safetensors` in it (Flower starts this process in a folder of its own), and `patience-seconds`, how
long to wait for sites to connect. `signing-key` (absolute path) and `coordinator` (name) make it sign every request;
both empty or absent: unsigned, for a study on one machine, which no enrolled site answers. `nodes` (absolute path) is
the daemon's record of which node was enrolled as which party; a node with another name is left out, and enrolled
parties that are lost are waited for. A file `stop` in
the run directory stops the study after the round that is running; it is taken away when it has been seen.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.aggregation.flower import Signer
from server.deploy.nodes import Nodes
from server.rounds.checkpoint import read_arrays
from server.rounds.events import Observer
from server.rounds.loop import run_study
from server.rounds.signer import read_signer
from server.rounds.study import Bound
from shared_model.errors import ConfigError, QuorumError
from shared_model.messages import Arrays
from shared_model.protocol import Protocol
from shared_model.weights import find_public_weights

STOP_FILE = "stop"
POLL_S = 0.5

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume the study.

    Raises:
        ConfigError: the run configuration is incomplete.
        SignatureError, StorageError: the signing key cannot be used.
        WeightsError: the initial weights are absent, or not those that the protocol names.
        QuorumError: the study did not complete; Flower then reports the run as failed, which plain Flower would not.
    """
    run_dir, patience_s = context.run_config.get("run-dir"), context.run_config.get("patience-seconds")
    if not isinstance(run_dir, str) or not Path(run_dir).is_absolute() or not isinstance(patience_s, int | float):
        raise ConfigError(
            "Flower's run configuration is incomplete", found=sorted(context.run_config),
            expected="run-dir (absolute path) and patience-seconds (number)",
        )  # fmt: skip
    run(grid, Path(run_dir), patience_s=float(patience_s), signer=_signer(context), bound=_bound(context))


def run(
    grid: Grid, folder: Path, *, patience_s: float, observer: Observer = lambda _: None, signer: Signer | None = None,
    bound: Bound | None = None,
) -> None:  # fmt: skip
    """Run or resume the study of a run directory; raises as :func:`main`. observer: told of every event."""
    protocol = Protocol.read(folder / "protocol.json")
    with _stop_when_asked(folder / STOP_FILE) as stop:
        outcome = run_study(
            grid=grid, protocol=protocol, run_dir=folder, initial=_initial(folder, protocol), observer=observer,
            stop=stop, patience_s=patience_s, waits_for_lost=bound is not None, signer=signer, bound=bound,
        )  # fmt: skip
    if outcome.status != "COMPLETE":
        raise QuorumError(f"the study is {outcome.status}", found=outcome.reason, remedy=f"resume it in {folder}")


def _signer(context: Context) -> Signer | None:
    path, name = (context.run_config.get(key, "") for key in ("signing-key", "coordinator"))
    if path == "" and name == "":
        return None
    if not isinstance(path, str) or not Path(path).is_absolute() or not isinstance(name, str) or not name:
        raise ConfigError("Flower's run configuration names half a signer", expected="signing-key (absolute path) and "
                          "coordinator (name), or neither", remedy="start the study with `mammofed server start`")
    return read_signer(Path(path), name=name)


def _bound(context: Context) -> Bound | None:
    path = context.run_config.get("nodes", "")
    if path == "":
        return None
    if not isinstance(path, str) or not Path(path).is_absolute():
        raise ConfigError("Flower's run configuration: nodes is no absolute path",
                          remedy="start the study with `mammofed server start`")  # fmt: skip
    nodes = Nodes(Path(path))
    return lambda: {number: (node.site, node.role) for number, node in nodes.read().items()}


def _initial(folder: Path, protocol: Protocol) -> Arrays:
    """The initial weights: of the run directory, or those of the package by their hash. The loop verifies the hash."""
    path = folder / "initial.safetensors"
    if path.exists():
        return read_arrays(path)
    return find_public_weights(protocol.initial_weights.sha256)[0]


@contextmanager
def _stop_when_asked(path: Path) -> Iterator[threading.Event]:
    """An event that is set once somebody has made the file `path`."""
    stop, ended = threading.Event(), threading.Event()

    def look() -> None:
        if path.exists():
            path.unlink(missing_ok=True)
            stop.set()

    def watch() -> None:
        while not ended.wait(POLL_S):
            look()

    look()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        ended.set()
        watcher.join()
