"""A study as a run of MLflow, local or on a tracking server; the extra `mlflow` brings `mlflow-skinny`.

The tracking server is the one that MLflow itself is told of (`MLFLOW_TRACKING_URI`, with its own credentials); without
it the run lies in `monitor/mlruns` of the run directory. What goes there is what the journal holds: parameters of the
protocol, curves, the end. No weights, and nothing that a site does not let out.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.monitor.writers.cursor import Cursor
from server.monitor.writers.points import points
from server.rounds.events import Event
from shared_model.protocol import Protocol

EXPERIMENT = "mammofed"
MOST_AT_ONCE = 1000  # metrics of one call, MLflow's own bound
ENDS: Mapping[str, str] = {"COMPLETE": "FINISHED", "STOPPED": "KILLED", "INCOMPLETE": "FAILED"}
MOST_WAITED_S = "10"  # for one answer of a tracking server
MOST_TRIED = "1"      # times; the feed tries again by itself


class MLflow:
    """Logs to one run, made at the first event and taken up again by its id."""

    def __init__(self, folder: Path) -> None:
        self._run_dir, self._folder, self._cursor_file = folder.parent, folder, folder / "mlflow.json"
        self._cursor = Cursor()
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", MOST_WAITED_S)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MOST_TRIED)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is told to anybody whom nobody named
        self._entities = importlib.import_module("mlflow.entities")
        self._tracking = importlib.import_module("mlflow.tracking")
        self._open: Any = None

    def begin(self) -> int:
        """Number of the last event that the run has."""
        self._cursor = Cursor.read(self._cursor_file)
        return self._cursor.last

    def write(self, events: Sequence[tuple[int, Event]]) -> None:
        """Log the numbers of these events, and the study's end as a tag."""
        client, run = self._client(), self._run()
        found = [self._entities.Metric(point.name, point.value, int(point.time * 1000), point.step)
                 for _, event in events for point in points(event)]  # fmt: skip
        for start in range(0, len(found), MOST_AT_ONCE):
            client.log_batch(run, metrics=found[start : start + MOST_AT_ONCE])
        for _, event in events:
            if event.kind == "model_chosen":
                client.set_tag(run, "mammofed.chosen_round", str(event.round))
            if event.kind in ("study_started", "study_resumed"):
                client.update_run(run, status="RUNNING")
            if event.kind == "finished":
                status = str(event.data.get("status", ""))
                client.set_tag(run, "mammofed.status", status)
                client.set_terminated(run, status=ENDS.get(status, "FAILED"), end_time=int(event.time * 1000))
        self._cursor = Cursor(last=events[-1][0], run=run)
        self._cursor.write(self._cursor_file)

    def close(self) -> None:
        """The run's end came with its event."""
        self._open = None

    def _client(self) -> Any:
        if self._open is None:
            uri = os.environ.get("MLFLOW_TRACKING_URI") or (self._folder / "mlruns").resolve().as_uri()
            if uri.startswith("file:"):
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            self._open = self._tracking.MlflowClient(tracking_uri=uri)
        return self._open

    def _run(self) -> str:
        if self._cursor.run:
            return self._cursor.run
        client, protocol = self._client(), Protocol.read(self._run_dir / "protocol.json")
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found is not None else client.create_experiment(EXPERIMENT)
        tags = {"mammofed.protocol_sha256": protocol.sha256, "mammofed.release": protocol.release,
                "mammofed.run_dir": self._run_dir.name}  # fmt: skip
        run = str(client.create_run(experiment, run_name=self._run_dir.name, tags=tags).info.run_id)
        for name, value in parameters(protocol).items():
            client.log_param(run, name, value)
        self._cursor = Cursor(run=run)
        self._cursor.write(self._cursor_file)
        return run


def parameters(protocol: Protocol) -> dict[str, str | int | float]:
    """What runs differ by."""
    training, federation, privacy = protocol.training, protocol.federation, protocol.privacy
    found: dict[str, str | int | float] = {
        "study": protocol.study, "seed": protocol.seed, "model": protocol.model.size, "fusion": protocol.model.fusion,
        "rounds": protocol.rounds, "sites": len(federation.sites), "strategy": federation.strategy,
        "quorum": federation.quorum, "optimizer": training.optimizer, "steps_per_round": training.steps_per_round,
        "sample_rate": training.sample_rate, "privacy": privacy.mode,
    }  # fmt: skip
    if protocol.private:
        found |= {"epsilon": privacy.epsilon, "delta": privacy.delta, "clip": privacy.clip,
                  "noise_multiplier": privacy.noise_multiplier}  # fmt: skip
    return found
