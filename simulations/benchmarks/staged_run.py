"""A run directory whose study is played, not trained: the real journal, written step by step with invented numbers.

For the monitor's benchmark and for tests of monitors, which need studies of every size and in every state.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from server.rounds.events import Event, Kind, Severity
from server.rounds.journal import Journal, Participation
from server.rounds.phases import Phases
from server.rounds.states import RoundStep, StudyStep
from shared_model.messages import PrivacySpent
from shared_model.protocol import Protocol

SHA = "ab" * 32
OFF = ("rotation_degrees", "shift", "scale", "vertical_flip", "elastic", "intensity", "view_dropout",
       "modality_dropout", "feature_dropout")  # fmt: skip


def staged_protocol(*, sites: Sequence[str], rounds: int, private: bool = True, **federation: Any) -> Protocol:
    """A protocol with nothing behind it. federation: values of its terms, e.g. `quorum=3`."""
    return Protocol.create(staged_values(dict.fromkeys(sites, 100), rounds=rounds, private=private, **federation))


def staged_values(
    patients: Mapping[str, int], *, rounds: int, private: bool = True, **federation: Any
) -> dict[str, Any]:
    """Its values. patients: by site."""
    first = max(1, rounds // 3)
    phases = [{"name": "image", "rounds": first, "objective": "image", "learning_rate": 0.5, "encoder_rate": 1.0}]
    if rounds > first:
        phases.append({"name": "fusion", "rounds": rounds - first, "objective": "fusion", "learning_rate": 0.5,
                       "encoder_rate": 0.1})  # fmt: skip
    return {
        "study": "staged", "release": "0.1.0", "seed": 0,
        "contract": {"version": "1", "sha256": SHA, "n_features": 40},
        "pipeline": {"sha256": SHA, "height": 112, "width": 84, "spacing_mm": 1.75},
        "model": {"size": "tiny", "fusion": "gated"},
        "initial_weights": {"sha256": SHA, "origin": "public", "recipe": "public tiny"},
        "loss": {"kind": "bce", "prevalence": 0.2, "pos_weight": 1.0, "focal_gamma": 2.0, "focal_alpha": 0.5,
                 "auxiliary": 0.3},
        "training": {
            "engine": "loop" if private else "batch", "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0,
            "sample_rate": 0.1, "steps_per_round": 5, "decay": "sqrt", "gradient_clip": 1.0, "proximal_mu": 0.0,
            "ema_decay": 0.9, "precision": "fp32", "oversampling": "none", "phases": phases,
            "augmentation": {"enabled": False} | dict.fromkeys(OFF, 0.0),
        },
        "privacy": {"mode": "patient" if private else "none", "clip": 1.0, "noise_multiplier": 1.3 if private else 0.0,
                    "epsilon": 8.0, "delta": 1e-5, "metrics": "final" if private else "none",
                    "metrics_noise_multiplier": 4.0, "metrics_bins": 32},
        "federation": {
            "strategy": "fedavg", "server_learning_rate": 1.0, "server_beta_1": 0.9, "server_beta_2": 0.99,
            "server_tau": 1e-3,
            "sites": [{"name": n, "patients": p, "weight": p / sum(patients.values())} for n, p in patients.items()],
            "sites_per_round": len(patients), "quorum": max(1, len(patients) - 1), "deadline_s": 600.0, "attempts": 2,
        } | federation,
        "evaluation": {"selection_rule": "best_selection_auc", "every": 1, "specificity": 0.85, "confidence": 0.95,
                       "bootstrap": 0, "collapse_auc": 0.55},
    }  # fmt: skip


class StagedRun:
    """A study in `run_dir` that holds its lock like a real one; a context manager.

    Args:
        started: seconds since 1970 at which it began; time passes by :attr:`now` alone.
    """

    def __init__(self, run_dir: Path, protocol: Protocol, *, started: float) -> None:
        self.run_dir, self.protocol, self.now = run_dir, protocol, started
        self.sites = [site.name for site in protocol.federation.sites]
        self.gave: list[str] = []  # whose update is in the round
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "protocol.json").write_text(protocol.to_json(), encoding="utf-8")
        self._lock: TextIO | None = (run_dir / "journal.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.journal = Journal(run_dir / "journal.sqlite", lambda _: None, clock=lambda: self.now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    def die(self) -> None:
        """As if the process were gone: nothing more is written, and its lock is free."""
        if self._lock is not None:
            self.journal.__exit__(None, None, None)
            self._lock.close()
            self._lock = None

    def note(
        self, kind: Kind, text: str = "", *, severity: Severity = "info", code: str = "", number: int = 0,
        attempt: int = 0, site: str | None = None, data: Mapping[str, float | str] | None = None,
    ) -> None:  # fmt: skip
        """Add an event to the open step."""
        self.journal.event(Event(time=self.now, kind=kind, severity=severity, code=code, round=number, attempt=attempt,
                                 site=site, text=text, data=data or {}))  # fmt: skip

    def begin(self) -> None:
        """Start the study: everybody is there, and the initial weights are measured."""
        self.journal.begin_session({"python": "3.11"})
        with self.journal.study_step(StudyStep.START):
            self.journal.put("study", self.protocol.study)
            self.journal.put("protocol_sha256", self.protocol.sha256)
            self.note("study_started", f"{self.protocol.rounds} rounds, {len(self.sites)} sites")
            for name in self.sites:
                self.note("site_present", "site, cpu", site=name)
            self.measure(0, 0.7, scope="initial")

    def open(self, number: int, *, attempt: int = 1) -> None:
        """Open a round and ask everybody."""
        with self.journal.round_step(number, attempt, RoundStep.OPEN, weights_before=SHA):
            self.note("round_opened", f"{len(self.sites)} sites", number=number, attempt=attempt)
        with self.journal.entry():
            for name in self.sites:
                self.note("site_started", number=number, attempt=attempt, site=name)

    def collect(
        self, number: int, *, attempt: int = 1, outcomes: Mapping[str, tuple[str, str]] | None = None,
        seconds: float = 10.0,
    ) -> None:  # fmt: skip
        """Everybody has answered. outcomes: (outcome, reason) of sites that did not contribute."""
        self.now += seconds
        self.gave.clear()
        share = math.sqrt(number / self.protocol.rounds)
        with self.journal.round_step(number, attempt, RoundStep.COLLECT):
            for place, name in enumerate(self.sites):
                outcome, reason = (outcomes or {}).get(name, ("contributed", ""))
                came = outcome in ("contributed", "abstained", "refused")
                data: dict[str, float | str] = {"outcome": outcome, "seconds": 0.6 * seconds}
                self.journal.participation(number, attempt, Participation(
                    site=name, outcome=outcome, reason=reason, asked=1, seconds=0.6 * seconds if came else None,
                    bytes_up=400_000 if came else 0, bytes_down=400_000,
                    phases=self._phases(place, seconds) if came else None))  # fmt: skip
                if self.protocol.private and outcome == "contributed":
                    spent = PrivacySpent(epsilon=8.0 * share, budget=8.0, delta=1e-5, noise_multiplier=1.3,
                                         sample_rate=0.1, steps=5 * number)  # fmt: skip
                    self.journal.privacy(number, name, "training", spent)
                    data |= {"epsilon": 8.0 * share, "budget": 8.0}
                good = outcome == "contributed"
                self.gave += [name] if good else []
                self.note("site_replied", reason, severity="info" if good else "warning", code="" if good else outcome,
                          number=number, attempt=attempt, site=name, data=data)  # fmt: skip

    def _phases(self, place: int, seconds: float) -> Phases:
        """Of the site at a place: the 0.6 that it says to have taken are loading and training."""
        wait, mask, send = 0.05 * (place % 3), 0.08 * self.protocol.summed, 0.08 + 0.04 * (place % 4)
        return Phases(wait=wait * seconds, load=0.15 * seconds, train=0.45 * seconds, mask=mask * seconds,
                      send=send * seconds, round_trip=(0.6 + wait + mask + send) * seconds)  # fmt: skip

    def close(self, number: int, *, attempt: int = 1, fused: float | None = None) -> None:
        """Aggregate, evaluate, save, close. fused: its AUC; None: it rises by the round."""
        with self.journal.round_step(number, attempt, RoundStep.AGGREGATE):
            for name in self.gave:
                self.journal.metrics(number, "influence", name, {"norm": 1.5, "cosine": 0.25, "shift": 0.1})
        self.now += 1.0
        with self.journal.round_step(number, attempt, RoundStep.EVALUATE):
            risen = 0.9 - 0.2 * math.exp(-4 * number / self.protocol.rounds)
            self.measure(number, risen if fused is None else fused, scope="selection")
        with self.journal.round_step(number, attempt, RoundStep.SAVE, weights_after=SHA):
            self.note("checkpoint_written", f"round-{number:04d}.safetensors", number=number, attempt=attempt)
        with self.journal.round_step(number, attempt, RoundStep.CLOSE):
            self.note("round_closed", number=number, attempt=attempt, data={"contributed": len(self.sites)})

    def round(self, number: int, **collect: Any) -> None:
        """A whole round."""
        self.open(number)
        self.collect(number, **collect)
        self.close(number)

    def measure(self, number: int, fused: float, *, scope: str) -> None:
        """The evaluator's document of one round, and its numbers."""
        auc = {"fused": fused, "image": fused - 0.03, "clinical": 0.5 + 0.4 * (fused - 0.5)}
        document = {"n": 300, "positives": 60, "auc": auc}
        self.journal.report(number, scope, "evaluator", weights=SHA, document=document, seconds=1.0, bytes_up=1000,
                            bytes_down=400_000)  # fmt: skip
        self.note("evaluated", number=number, site="evaluator", data={f"auc_{k}": v for k, v in auc.items()})

    def finish(self, step: StudyStep, reason: str = "") -> None:
        """End the study; COMPLETE goes through choice and test."""
        if step is StudyStep.COMPLETE:
            with self.journal.study_step(StudyStep.CHOOSE):
                self.journal.put("chosen", {"round": self.protocol.rounds, "rule": "best_selection_auc", "sha256": SHA})
                self.note("model_chosen", number=self.protocol.rounds)
            with self.journal.study_step(StudyStep.TEST):
                document = json.loads('{"models": {"fused": {"auc": 0.88, "auc_low": 0.85, "auc_high": 0.91}, '
                                      '"image": {"auc": 0.85, "auc_low": 0.81, "auc_high": 0.88}, '
                                      '"clinical": {"auc": 0.66, "auc_low": 0.61, "auc_high": 0.71}}}')
                self.journal.report(self.protocol.rounds, "test", "evaluator", weights=SHA, document=document,
                                    seconds=1.0, bytes_up=1000, bytes_down=400_000)  # fmt: skip
                self.note("tested", number=self.protocol.rounds)
        with self.journal.study_step(step):
            self.note("finished", reason, severity="error" if step is StudyStep.GIVE_UP else "info", code=step.value)
