"""The ServerApp behind `flwr run .` in a checkout: makes the hospitals, then runs the study on Flower's own grid.

Run configuration (`[tool.flwr.app.config]` in pyproject.toml): `study` and `overrides` are those of `mammofed
simulate`; the hospitals are as many as simulated nodes less one, which is the evaluator.
"""

from __future__ import annotations

import shlex
import time

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.app import run
from server.reporting import Signature, write_passport, write_report
from server.rounds.summary import write_summary
from shared_model.errors import ConfigError
from simulations.engine.flower.place import run_directory

POLL_S = 0.5

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study; its run directory is told in the first lines of the log.

    Raises:
        ConfigError: a value of the run configuration is wrong, or there are fewer than two nodes.
        QuorumError: the study did not complete.
    """
    from simulations.launch import prepare_alone  # not at the head: the launcher imports this package
    from simulations.live import LiveView

    values, folder = context.run_config, run_directory(context)
    patience_s = float(str(values["patience-seconds"]))
    sites = _nodes(grid, patience_s=patience_s) - 1
    if sites < 1:
        raise ConfigError("a study needs a hospital and the evaluator", found=f"{sites + 1} nodes",
                          expected="2 or more", remedy="--federation-config 'num-supernodes=4'")  # fmt: skip
    with LiveView(folder) as view:
        prepare_alone(compose(str(values["study"]), str(values["overrides"]), sites=sites), folder, view)
        run(grid, folder, patience_s=patience_s, observer=view.observe)
        summary = write_summary(folder)
        write_passport(folder, Signature.of_run())
        view.final(summary, write_report(folder))


def compose(study: str, overrides: str, *, sites: int) -> dict[str, object]:
    """The whole configuration as `mammofed simulate study=... engine=flower ...` has it."""
    from hydra import compose as compose_tree
    from hydra import initialize_config_module
    from omegaconf import OmegaConf

    asked = [f"study={study}", "engine=flower", f"name={study}", *shlex.split(overrides), f"sites={sites}"]
    with initialize_config_module("configs", version_base="1.3"):
        tree = OmegaConf.to_container(compose_tree("config", overrides=asked), resolve=True)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _nodes(grid: Grid, *, patience_s: float) -> int:
    """How many nodes there are, once two looks say the same: this process starts before they are all registered."""
    found, before, waited = 0, -1, 0.0
    while (found == 0 or found != before) and waited < patience_s:
        time.sleep(POLL_S)
        waited += POLL_S
        before, found = found, len(list(grid.get_node_ids()))
    return found


