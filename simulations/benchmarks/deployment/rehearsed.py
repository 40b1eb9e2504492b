"""Our study as it is deployed, once, to its end; started by `contest` under the probe.

    python -m simulations.benchmarks.deployment.rehearsed RUN_DIR OUT

Coordinator and sites as people run them (`engine=deployment`): enrolment, mutual TLS through tunnel and gateway, signed
protocol and requests, audit logs. All sites reach the coordinator through a relay that counts; writes `OUT/wire.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from shared_model.protocol import Protocol
from simulations.benchmarks.deployment.wire import Relay
from simulations.engine.deployment.rehearsal import Rehearsal
from simulations.engine.deployment.run import parties

START_LIMIT_S, STUDY_LIMIT_S = 300.0, 900.0


def main(run_dir: Path, out: Path) -> int:
    """Deploy the prepared study of `run_dir`, whose sites lie in its `sites`."""
    protocol = Protocol.read(run_dir / "protocol.json")
    everybody = parties(sorted((run_dir / "sites").glob("*/site.json")), protocol)
    with Relay() as relay:
        with Rehearsal(out / "deployment", everybody, timeout_s=START_LIMIT_S, reached_by=relay.to) as there:
            study = there.propose(run_dir)
            there.approve(study.name)
            there.server("start", study.name)
            there.wait(study, look=relay.traffic.sample, timeout_s=STUDY_LIMIT_S)
        relay.traffic.sample()
        (out / "wire.json").write_text(json.dumps(relay.traffic.timeline), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
