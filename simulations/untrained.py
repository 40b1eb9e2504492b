"""A released model that no hospital has trained: public weights in a default study's shape; for benches and tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import load_file

from shared_model.contract import load_contract
from shared_model.messages import weights_sha256
from shared_model.released import PROTOCOL, RELEASE, WEIGHTS, Release
from simulations.composition import compose_config
from simulations.plan import build_protocol, phases, pipeline_of, write_initial_weights


def write_untrained_release(folder: Path, *, overrides: Sequence[str] = ()) -> Release:
    """Write the folder; its thresholds and temperature are nobody's measurement, and it says so."""
    config = compose_config(["privacy=none", *overrides])
    contract = load_contract()
    folder.mkdir(parents=True, exist_ok=True)
    initial = write_initial_weights(config, n_features=contract.n_features, destination=folder / WEIGHTS)
    protocol = build_protocol(
        {**config, "name": "untrained"}, patients={f"site_{n:02d}": 100 for n in range(1, config["sites"] + 1)},
        sigmas=(0.0,) * len(phases(config)), initial_weights=initial, pipeline=pipeline_of(config).terms(),
        contract={"version": contract.version, "sha256": contract.sha256, "n_features": contract.n_features},
    )  # fmt: skip
    (folder / PROTOCOL).write_text(protocol.to_json())
    release = Release(
        study=protocol.study, protocol_sha256=protocol.sha256,
        model_sha256=weights_sha256(load_file(folder / WEIGHTS)), round=0,
        thresholds=dict.fromkeys(("fused", "image", "clinical"), -1.0), temperature=1.0, specificity=0.85,
        selection_n=100, selection_positives=25, test=None, calibration=(), epsilon=None, delta=None,
    )  # fmt: skip
    (folder / RELEASE).write_text(json.dumps(release.model_dump(mode="json")))
    return release
