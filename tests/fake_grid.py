"""A Grid in memory with small sites that really learn: a test double for the round loop and everything behind it.

Sites fit a bilinear model with numpy on data of their own, answer through real Flower messages in the real layout, and,
as trainers do, answer a repeated request with the reply that they stored. Faults are switched on by site and round.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # private to Flower: Message() reads it outside of its processes
from numpy.typing import NDArray
from safetensors.numpy import save

from shared_model.messages import (
    Arrays,
    DescribeReply,
    DescribeRequest,
    ErrorReply,
    EvaluateReply,
    EvaluateRequest,
    Frame,
    PrivacySpent,
    TrainReply,
    TrainRequest,
    parse_message,
    split_correction,
    weights_sha256,
)
from shared_model.protocol import Protocol
from shared_model.tensors import split_parts, unpack_parts

Weights = dict[str, NDArray[np.float32]]
SITES = ("ash", "birch", "cedar", "dogwood")
FEATURES, HIDDEN = 5, 3


def initial_weights(seed: int = 0) -> Weights:
    random = np.random.default_rng(seed)
    return {
        "encoder.weight": (0.3 * random.normal(size=(FEATURES, HIDDEN))).astype(np.float32),
        "head.weight": (0.3 * random.normal(size=(HIDDEN,))).astype(np.float32),
        "head.bias": np.zeros((), dtype=np.float32),
    }


def make_protocol(initial: Arrays | None = None, **changes: Any) -> Protocol:
    """A study of four sites; `changes` by dotted name with `__`, e.g. `federation__quorum=2`."""
    sha, sizes = "ab" * 32, dict(zip(SITES, (1, 2, 3, 1), strict=True))
    start = weights_sha256(initial or initial_weights())
    values: dict[str, Any] = {
        "study": "fake", "release": "0.1.0", "seed": 3,
        "contract": {"version": "1", "sha256": sha, "n_features": FEATURES},
        "pipeline": {"sha256": sha, "height": 32, "width": 32, "spacing_mm": 4.0},
        "model": {"size": "tiny", "fusion": "gated"},
        "initial_weights": {"sha256": start, "origin": "random", "recipe": "test"},
        "loss": {"kind": "bce", "prevalence": 0.3, "pos_weight": 1.0, "focal_gamma": 2.0, "focal_alpha": 0.5,
                 "auxiliary": 0.0},
        "training": {
            "engine": "batch", "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "sample_rate": 0.5,
            "steps_per_round": 4, "decay": "constant", "gradient_clip": 1.0, "proximal_mu": 0.0, "ema_decay": 0.0,
            "precision": "fp32", "oversampling": "none",
            "phases": [{"name": "all", "rounds": 4, "objective": "fusion", "learning_rate": 1.0, "encoder_rate": 1.0}],
            "augmentation": {"enabled": False} | dict.fromkeys(
                ("rotation_degrees", "shift", "scale", "vertical_flip", "elastic", "intensity", "view_dropout",
                 "modality_dropout", "feature_dropout"), 0.0),
        },
        "privacy": {"mode": "none", "clip": 1.0, "noise_multiplier": 0.0, "epsilon": 8.0, "delta": 1e-5,
                    "metrics": "final", "metrics_noise_multiplier": 0.0, "metrics_bins": 16},
        "federation": {
            "strategy": "fedavg", "server_learning_rate": 0.1, "server_beta_1": 0.9, "server_beta_2": 0.99,
            "server_tau": 1e-3, "sites": [{"name": n, "patients": 40, "weight": w} for n, w in sizes.items()],
            "sites_per_round": 4, "quorum": 3, "deadline_s": 5.0, "attempts": 2,
        },
        "evaluation": {"selection_rule": "best_selection_auc", "every": 1, "specificity": 0.85, "confidence": 0.95,
                       "bootstrap": 0, "collapse_auc": 0.55},
    }  # fmt: skip
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    return Protocol.create(values)


# Each strategy with the settings that it needs for four sites and a quorum of three.
STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {},
    "fedprox": {"federation__strategy": "fedprox", "training__proximal_mu": 0.1},
    "fedavgm": {"federation__strategy": "fedavgm", "federation__server_beta_1": 0.5},
    "fedadam": {"federation__strategy": "fedadam"},
    "fedyogi": {"federation__strategy": "fedyogi"},
    "fedmedian": {"federation__strategy": "fedmedian", "federation__byzantine": 1},
    "trimmed_mean": {"federation__strategy": "trimmed_mean", "federation__byzantine": 1},
    "krum": {"federation__strategy": "krum"},
    "scaffold": {"federation__strategy": "scaffold", "federation__server_learning_rate": 1.0},
}
PRIVATE = {
    "privacy__mode": "patient", "privacy__noise_multiplier": 1.0, "training__engine": "loop",
    "training__gradient_clip": 0.0,
}  # fmt: skip


def women(seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, FEATURES))
    y = (x @ np.array([1.0, -1.0, 0.5, 0.0, 0.0]) + random.normal(size=count) > 0.3).astype(np.int64)
    return x, y


def logits(weights: Arrays, x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x @ weights["encoder.weight"] @ weights["head.weight"] + weights["head.bias"])


def auc(scores: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    return float(np.mean(scores[y == 1][:, None] > scores[y == 0][None, :]))


def fit(
    weights: Arrays, protocol: Protocol, site: str, round_number: int, correction: Arrays | None = None
) -> Weights:
    """One round at one site: clipped gradient steps, with the noise of DP-SGD where the protocol is private, and
    SCAFFOLD's correction where one came."""
    seed = sum(map(ord, site))
    x, y = women(seed, protocol.federation.site(site).patients)
    random = np.random.default_rng([seed, round_number])
    new = {name: np.array(array, dtype=np.float64) for name, array in weights.items()}
    rate, batch = protocol.learning_rate(round_number), protocol.expected_batch(site, round_number)
    for _ in range(protocol.training.steps_per_round):
        drawn = random.random(len(x)) < protocol.training.sample_rate
        error = 1 / (1 + np.exp(-logits(new, x[drawn]))) - y[drawn]
        per_patient = np.concatenate(
            [np.einsum("bf,b,d->bfd", x[drawn], error, new["head.weight"]).reshape(drawn.sum(), -1),
             (x[drawn] @ new["encoder.weight"]) * error[:, None], error[:, None]], axis=1,
        )  # fmt: skip
        if protocol.private:
            norms = np.linalg.norm(per_patient, axis=1, keepdims=True)
            per_patient /= np.maximum(1.0, norms / protocol.privacy.clip)
            noise = random.normal(size=per_patient.shape[1]) * protocol.privacy.noise_multiplier * protocol.privacy.clip
            step = (per_patient.sum(axis=0) + noise) / batch
        else:
            step = per_patient.mean(axis=0)
            step /= max(1.0, float(np.linalg.norm(step)) / protocol.training.gradient_clip)
        if correction:
            step = step + flattened(correction)
        flat = flattened(new) - rate * step
        new |= {"encoder.weight": flat[: FEATURES * HIDDEN].reshape(FEATURES, HIDDEN),
               "head.weight": flat[FEATURES * HIDDEN : -1], "head.bias": flat[-1].reshape(())}  # fmt: skip
    return {name: array.astype(np.float32) for name, array in new.items()}


def flattened(weights: Arrays) -> NDArray[Any]:
    return np.concatenate([weights["encoder.weight"].ravel(), weights["head.weight"], weights["head.bias"].ravel()])


Fault = Callable[[Frame], Frame | Error | None]  # of a reply: another reply, an error of Flower's, or nothing in time


@dataclass
class Party:
    """A site or the evaluator. trained: how often it really trained, by (round, attempt)."""

    name: str
    role: str
    protocol: Protocol
    faults: dict[int, Fault] = field(default_factory=dict)  # by round; the last round's fault also for evaluations
    trained: Counter[tuple[int, int]] = field(default_factory=Counter)
    measured: list[EvaluateRequest] = field(default_factory=list)
    stored: dict[str, Frame] = field(default_factory=dict)
    spent: int = 0
    release: str = "0.1.0"
    approved: bool = True
    image_auc: dict[int, float] = field(default_factory=dict)

    def handle(self, frame: Frame) -> Frame:
        message = frame.message
        if isinstance(message, DescribeRequest):
            return Frame(DescribeReply(site=self.name, role=self.role, release=self.release, device="cpu",  # type: ignore[arg-type]
                                       protocols=(self.protocol.sha256,) if self.approved else ()))  # fmt: skip
        arrays, correction = split_correction(frame.arrays)
        assert weights_sha256(arrays) == message.weights_sha256  # type: ignore[union-attr]
        if isinstance(message, EvaluateRequest):
            self.measured.append(message)
            return self._evaluate(message, arrays)
        assert isinstance(message, TrainRequest)
        assert (weights_sha256(correction) if correction else None) == message.correction_sha256
        return self._train(message, arrays, correction)

    def _train(self, message: TrainRequest, arrays: Arrays, correction: Arrays) -> Frame:
        identity = f"{message.study}/{message.round}/{message.attempt}"
        if identity in self.stored:
            reply = self.stored[identity]
            assert isinstance(reply.message, TrainReply) and reply.message.weights_sha256 == message.weights_sha256
            assert reply.message.correction_sha256 == message.correction_sha256
            return reply
        self.trained[message.round, message.attempt] += 1
        self.spent += self.protocol.training.steps_per_round
        reply = TrainReply(
            site=self.name, study=message.study, round=message.round, attempt=message.attempt, outcome="trained",
            weights_sha256=message.weights_sha256, correction_sha256=message.correction_sha256, seconds=0.01, loss=0.5,
            privacy=self._privacy(),
        )  # fmt: skip
        self.stored[identity] = Frame(reply, fit(arrays, self.protocol, self.name, message.round, correction))
        return self.stored[identity]

    def _privacy(self) -> PrivacySpent | None:
        terms = self.protocol.privacy
        if not self.protocol.private:
            return None
        return PrivacySpent(epsilon=0.1 * self.spent, budget=terms.epsilon, delta=terms.delta, steps=self.spent,
                            noise_multiplier=terms.noise_multiplier, sample_rate=0.5)  # fmt: skip

    def _evaluate(self, message: EvaluateRequest, arrays: Arrays) -> Frame:
        x, y = women({"selection": 90, "test": 91}.get(message.scope, sum(map(ord, self.name)) + 1), 200)
        value = auc(logits(arrays, x), y)
        image = self.image_auc.get(message.round, value)
        names = ("image",) if message.image_only else ("fused", "image", "clinical")
        values = {"fused": value, "image": image, "clinical": 0.6}
        if message.scope == "selection":
            document: dict[str, Any] = {
                "n": 200, "positives": int(y.sum()), "auc": {name: values[name] for name in names},
                "thresholds": dict.fromkeys(names, 0.4), "temperature": 1.25,
            }  # fmt: skip
        elif message.scope == "test":
            row = {"auc_low": 0.1, "auc_high": 1.0, "threshold": 0.4, "roc": [[0.0, 0.0], [1.0, 1.0]]}
            document = {"n": 200, "positives": int(y.sum()), "models": {n: {"auc": values[n], **row} for n in names},
                        "comparisons": {}, "subgroups": []}  # fmt: skip
        else:
            document = {"n": 200, "auc": value}
        reply = EvaluateReply(
            site=self.name, study=message.study, round=message.round, weights_sha256=message.weights_sha256,
            scope=message.scope, outcome="evaluated", seconds=0.01, report=json.dumps(document),
            privacy=self._privacy() if self.role == "site" else None,
        )  # fmt: skip
        return Frame(reply)


class FakeGrid(Grid):
    """Nodes 101, 102, ... in an order of its own. extra: messages slipped in among the next replies."""

    def __init__(self, parties: Iterable[Party]) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
        self.parties = {101 + index: party for index, party in enumerate(parties)}
        self.timeouts: list[float | None] = []
        self.ttls: list[float] = []
        self.twice = False
        self.extra: list[Message] = []
        self.kept: list[Message] = []
        self._ids = itertools.count(1)

    def party(self, name: str) -> Party:
        return next(party for party in self.parties.values() if party.name == name)

    def get_node_ids(self) -> list[int]:
        return list(self.parties)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.timeouts.append(timeout)
        replies = list(self.extra)
        self.extra = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{next(self._ids)}"  # as Flower's own grids do
            self.ttls.append(message.metadata.ttl)
            reply = self._deliver(message)
            if reply is not None:
                replies += [reply, reply] if self.twice else [reply]
        self.kept += replies
        return replies[::-1]  # the order in which replies come means nothing

    def _deliver(self, message: Message) -> Message | None:
        party = self.parties.get(message.metadata.dst_node_id)
        if party is None:  # as Flower answers for a node that is offline
            return Message(Error(5, "node unavailable"), reply_to=message)
        content = copy.deepcopy(message.content)
        arrays = content.array_records.get("arrays", ArrayRecord())
        request = Frame(parse_message(str(content.config_records["message"]["json"])),
                        unpack_parts({part: array.data for part, array in arrays.items()}))  # fmt: skip
        reply: Frame | Error | None = party.handle(request)
        fault = party.faults.get(getattr(request.message, "round", 0))
        if fault is not None:
            assert isinstance(reply, Frame)
            reply = fault(reply)
        if reply is None:
            return None
        if isinstance(reply, Error):
            return Message(reply, reply_to=message)
        return Message(content_of(reply), reply_to=message)

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError


def content_of(frame: Frame) -> RecordDict:
    content = RecordDict({"message": ConfigRecord({"json": frame.message.model_dump_json()})})
    if frame.arrays:
        arrays = {name: np.asarray(array, order="C") for name, array in frame.arrays.items()}  # of any type
        parts = {part: save(tensors) for part, tensors in split_parts(arrays).items()}
        content["arrays"] = ArrayRecord({part: Array("uint8", (len(d),), "x", d) for part, d in parts.items()})
    return content


def make_grid(protocol: Protocol) -> FakeGrid:
    """All sites and the evaluator, in no order of names."""
    sites = [Party(site.name, "site", protocol) for site in protocol.federation.sites]
    return FakeGrid([*sites[::-1][:2], Party("evaluator", "evaluator", protocol), *sites[::-1][2:]])


# --- faults --------------------------------------------------------------------------------------------------------


def late(_: Frame) -> None:
    return None


def lost(_: Frame) -> Error:
    return Error(5, "node unavailable")


def refuses(_: Frame) -> Frame:
    return Frame(ErrorReply(code=30, reason="protocol\nnot \x1b[31mapproved"))


def changed(change: Callable[[Weights], Mapping[str, NDArray[Any]]]) -> Fault:
    def fault(reply: Frame) -> Frame:
        return Frame(reply.message, change({name: np.array(array) for name, array in reply.arrays.items()}))

    return fault


def fields(**values: Any) -> Fault:
    return lambda reply: Frame(reply.message.model_copy(update=values), reply.arrays)


def with_nan(weights: Weights) -> Weights:
    weights["encoder.weight"][0, 0] = np.nan
    return weights


def times_1000(weights: Weights) -> Weights:
    return {name: np.asarray(array * 1000, dtype=np.float32) for name, array in weights.items()}


def broadcastable(weights: Weights) -> Weights:
    return {**weights, "encoder.weight": weights["encoder.weight"][:1]}
