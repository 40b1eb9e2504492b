"""Flower's local SuperLink and `flwr run`, cold, as `flwr run` alone does it, but with patience; under the probe.

    python -m simulations.benchmarks.peers.flower_run APP SITES LIMIT_S

`flwr run` starts the SuperLink itself where it finds none, and gives up after 15 s, which a busy machine does not keep.
Started here, by the same command, it is found.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PORT, CONTROL_PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT"
POLL_S = 0.2  # as `flwr run`


def main(app: str, sites: str, limit_s: float) -> int:
    """Run the app on Ray, one core a client; the exit code of `flwr run`, or 1 when no SuperLink comes up in time."""
    folder, home = Path(sys.executable).parent, Path(os.environ["FLWR_HOME"]) / "local-superlink"
    home.mkdir()
    port = os.environ[PORT]
    superlink = subprocess.Popen(
        [str(folder / "flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess",
         "--control-api-address", f"127.0.0.1:{os.environ[CONTROL_PORT]}", "--host", "127.0.0.1", "--port", port,
         "--log-file", str(home / "superlink.log"), "--database", str(home / "state.db")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + limit_s
    while not _answers(f"http://127.0.0.1:{port}/health"):
        if superlink.poll() is not None or time.monotonic() > deadline:
            return 1
        time.sleep(POLL_S)
    settings = f"num-supernodes={sites} client-resources-num-cpus=1"
    command = [str(folder / "flwr"), "run", app, "local", "--stream", "--federation-config", settings]
    return subprocess.run(command, check=False).returncode


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=POLL_S) as answer:  # noqa: S310  (an address of this machine)
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
