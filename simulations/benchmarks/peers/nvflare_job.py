"""The NVIDIA FLARE contestant: `FedAvgRecipe` in `SimEnv`, a thread for every client; runs in the peers' environment.

    python -m simulations.benchmarks.peers.nvflare_job RUN_DIR OUT [TASK_REQUEST_INTERVAL_S]

Fewer threads than clients would start a client's process anew for each round. Clients ask for a task every 2 s unless
the interval is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from shared_model.protocol import Protocol
from simulations.benchmarks.peers import nvflare_client

MODEL = "simulations.benchmarks.peers.nvflare_model.InitialModel"


def main(run_dir: Path, out: Path, interval_s: float | None) -> None:
    """Run all rounds of the study in `run_dir`."""
    protocol = Protocol.read(run_dir / "protocol.json")
    sites = len(protocol.federation.sites)
    recipe = FedAvgRecipe(
        name="peer", model={"class_path": MODEL, "args": {"run_dir": str(run_dir)}}, min_clients=sites,
        num_rounds=protocol.rounds, train_script=nvflare_client.__file__, train_args=f"{run_dir} {out}",
    )  # fmt: skip
    if interval_s is not None:
        recipe.add_server_config({"server": {"task_request_interval": interval_s}})
    recipe.execute(SimEnv(num_clients=sites, num_threads=sites, workspace_root=str(out / "workspace")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else None)
