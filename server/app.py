"""The Flower ServerApp: reads where the study lies from Flower's run configuration and hands over to the round loop.

Run configuration: `run-dir`, an absolute path with `protocol.json` and `initial.safetensors` in it (Flower starts this
process in a folder of its own), and `patience-seconds`, how long to wait for sites to connect.
"""

from __future__ import annotations

import threading
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds.checkpoint import read_arrays
from server.rounds.loop import run_study
from shared_model.errors import ConfigError, QuorumError
from shared_model.protocol import Protocol

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume the study.

    Raises:
        ConfigError: the run configuration is incomplete.
        QuorumError: the study did not complete; Flower then reports the run as failed, which plain Flower would not.
    """
    run_dir, patience_s = context.run_config.get("run-dir"), context.run_config.get("patience-seconds")
    if not isinstance(run_dir, str) or not Path(run_dir).is_absolute() or not isinstance(patience_s, int | float):
        raise ConfigError(
            "Flower's run configuration is incomplete", found=sorted(context.run_config),
            expected="run-dir (absolute path) and patience-seconds (number)",
        )  # fmt: skip
    folder = Path(run_dir)
    outcome = run_study(
        grid=grid, protocol=Protocol.read(folder / "protocol.json"), run_dir=folder,
        initial=read_arrays(folder / "initial.safetensors"), observer=lambda _: None, stop=threading.Event(),
        patience_s=float(patience_s),
    )  # fmt: skip
    if outcome.status != "COMPLETE":
        raise QuorumError(f"the study is {outcome.status}", found=outcome.reason, remedy=f"resume it in {folder}")
