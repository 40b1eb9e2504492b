"""The training script of the NVIDIA FLARE contestant, by its Client API: weights in, one round of `work`, weights out.

    nvflare_client.py RUN_DIR OUT
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(run_dir: Path, out: Path) -> None:
    """Serve rounds until the job ends."""
    import nvflare.client as flare

    from simulations.benchmarks.peers import work

    flare.init()
    site = int(flare.get_site_name().rpartition("-")[2]) - 1  # the simulator calls its clients site-1, site-2, ...
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        weights, loss, patients = work.train(
            run_dir, site=site, round_number=int(received.current_round) + 1, weights=received.params, out=out
        )
        # FLARE weighs replies by this number, and the others weigh them by patients.
        flare.send(flare.FLModel(params=weights, metrics={"loss": loss}, meta={"NUM_STEPS_CURRENT_ROUND": patients}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
