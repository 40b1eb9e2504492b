"""Flower's strategies as aggregators only; called by the round loop, which picks the sites and keeps the state itself.

FedAvg: McMahan et al. 2017, https://arxiv.org/abs/1602.05629. FedProx: Li et al. 2020, https://arxiv.org/abs/1812.06127
(its proximal term acts at the sites). FedAdam: Reddi et al. 2021, https://arxiv.org/abs/2003.00295.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from flwr.supercore.run import Run
from numpy.typing import NDArray

from server.aggregation.flower import ARRAYS, MESSAGE, array_record, request_config
from shared_model.errors import ProtocolError, RoundError, StorageError
from shared_model.messages import Arrays, TrainRequest
from shared_model.protocol import Protocol

WEIGHT = "num-examples"  # Flower's name; here it is a constant of the protocol, whatever a site counts
MOMENTS = ("m_t", "v_t")  # attributes of flwr.serverapp.strategy.FedOpt that one round hands to the next


class SampledView(Grid):
    """A read-only Grid in which exactly the sampled sites exist, so that a strategy cannot sample or wait by itself."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self._nodes = tuple(nodes)

    def get_node_ids(self) -> tuple[int, ...]:
        """The sampled nodes."""
        return self._nodes

    def set_run(self, run: Run) -> None:
        """Refused: the view is read-only."""
        raise RuntimeError("the view of sampled sites is read-only")

    @property
    def run(self) -> Run:
        """Refused: a strategy needs no run."""
        raise RuntimeError("the view of sampled sites is read-only")

    def create_message(self, *_: object, **__: object) -> Message:
        """Refused: messages are made with the Message constructor."""
        raise RuntimeError("the view of sampled sites is read-only")

    def push_messages(self, messages: object) -> list[str]:
        """Refused: only the round loop sends."""
        raise RuntimeError("the view of sampled sites is read-only")

    def pull_messages(self, message_ids: object) -> list[Message]:
        """Refused: only the round loop receives."""
        raise RuntimeError("the view of sampled sites is read-only")

    def send_and_receive(self, messages: object, *, timeout: float | None = None) -> list[Message]:
        """Refused: only the round loop sends."""
        raise RuntimeError("the view of sampled sites is read-only")


class Aggregator:
    """One study's strategy. Its whole state between rounds is `state()`, plain arrays for the checkpoint.

    FedOpt's `current_arrays` is no part of that state: `configure_train` sets it to the round's weights each time.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._strategy = make_strategy(protocol)
        self._weights = {site.name: site.weight for site in protocol.federation.sites}
        self._request: Message | None = None

    def compose(self, weights: Arrays, request: TrainRequest, nodes: Sequence[int]) -> list[Message]:
        """The messages that ask each of `nodes` for one round of training from `weights`."""
        messages = list(
            self._strategy.configure_train(
                request.round, array_record(weights), request_config(request), SampledView(nodes)
            )
        )
        for message in messages:
            message.metadata.group_id = str(request.round)
        self._request = messages[0]
        return messages

    def aggregate(self, round_number: int, updates: Mapping[str, Arrays]) -> dict[str, NDArray[np.float32]]:
        """Checked updates by site -> new weights, float32. Sites in name order, weighted by the protocol's constants.

        Raises:
            RoundError: called before :meth:`compose`, or the result is not finite.
        """
        if self._request is None or not updates:
            raise RoundError("nothing to aggregate", found=f"{len(updates)} updates", expected="at least one asked for")
        replies = [
            Message(
                RecordDict(
                    {ARRAYS: array_record(updates[site]), "metrics": MetricRecord({WEIGHT: float(self._weights[site])})}
                ),
                reply_to=self._request,
            )
            for site in sorted(updates)
        ]
        record, _ = self._strategy.aggregate_train(round_number, replies)
        if record is None:
            raise RoundError("the strategy returned no weights", found=type(self._strategy).__name__)
        # FedAdam's step size is a numpy float64, which makes its result float64 (NEP 50).
        result = {name: np.asarray(array.numpy(), dtype=np.float32) for name, array in record.items()}
        if not all(np.isfinite(array).all() for array in result.values()):
            raise RoundError("the aggregate is not finite", remedy="lower federation.server_learning_rate")
        return result

    def state(self) -> dict[str, NDArray[np.float32]]:
        """What the next round needs besides the weights: `<attribute>.<tensor>` -> array; empty for FedAvg, FedProx."""
        return {
            f"{attribute}.{name}": np.asarray(array, dtype=np.float32)
            for attribute in MOMENTS
            for name, array in (getattr(self._strategy, attribute, None) or {}).items()
        }

    def load_state(self, state: Arrays) -> None:
        """Take up the state of a checkpoint.

        Raises:
            StorageError: the state belongs to another strategy.
        """
        parts: dict[str, dict[str, NDArray[np.float32]]] = {}
        for key, array in state.items():
            attribute, _, name = key.partition(".")
            parts.setdefault(attribute, {})[name] = np.asarray(array, dtype=np.float32)
        if set(parts) - set(MOMENTS) or (parts and not isinstance(self._strategy, FedAdam)):
            raise StorageError("checkpoint holds the state of another strategy", found=sorted(parts),
                               expected=type(self._strategy).__name__)  # fmt: skip
        for attribute in MOMENTS if isinstance(self._strategy, FedAdam) else ():
            setattr(self._strategy, attribute, parts.get(attribute))


def make_strategy(protocol: Protocol) -> FedAvg:
    """The Flower strategy that the protocol names, with the smallest node counts: the loop has its own quorum.

    Raises:
        ProtocolError: FedProx without a proximal term, which would be FedAvg under another name.
    """
    terms = protocol.federation
    common = {
        "min_train_nodes": 1, "min_available_nodes": 1, "weighted_by_key": WEIGHT,
        "arrayrecord_key": ARRAYS, "configrecord_key": MESSAGE,
    }  # fmt: skip
    if terms.strategy == "fedavg":
        return FedAvg(**common)  # type: ignore[arg-type]
    if terms.strategy == "fedprox":
        if protocol.training.proximal_mu == 0:
            raise ProtocolError("federation.strategy: fedprox needs a proximal term", found="training.proximal_mu 0",
                                expected="above 0", remedy="set proximal_mu, or choose fedavg")  # fmt: skip
        return FedProx(proximal_mu=protocol.training.proximal_mu, **common)  # type: ignore[arg-type]
    return FedAdam(
        eta=terms.server_learning_rate, eta_l=protocol.training.phases[0].learning_rate,
        beta_1=terms.server_beta_1, beta_2=terms.server_beta_2, tau=terms.server_tau, **common,  # type: ignore[arg-type]
    )  # fmt: skip
