"""Flower's strategies as aggregators only; called by the round loop, which picks the sites and keeps the state itself.

Which strategies there are, with their papers: `methods`; SCAFFOLD's part: `scaffold`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedTrimmedAvg, MultiKrum
from numpy.typing import NDArray

from server.aggregation.flower import ARRAYS, MESSAGE, array_record, request_config
from server.aggregation.methods import WEIGHT, forget_weights, make_strategy, remember, remembered, trim_share
from server.aggregation.scaffold import ControlVariates, Correction
from server.aggregation.view import SampledView
from shared_model.errors import RoundError
from shared_model.messages import CORRECTION, Arrays, TrainRequest
from shared_model.protocol import Protocol

SUM = "sum"  # stands where the name of a site would


class Aggregator:
    """One study's strategy. Its whole state between rounds is `state()`, plain arrays for the checkpoint.

    taken: sites whose updates went into the last aggregate, in name order; Krum leaves some out.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._terms = protocol.federation
        self._strategy = make_strategy(protocol)
        self._variates = ControlVariates(protocol) if self._terms.strategy == "scaffold" else None
        self._weights = {site.name: site.weight for site in self._terms.sites}
        self._request: Message | None = None
        self._base: Arrays = {}
        self._sent: dict[str, Correction] = {}
        self._round = 0
        self._chosen: list[RecordDict] = []
        self.taken: tuple[str, ...] = ()
        if isinstance(self._strategy, MultiKrum):  # it hands what it chose to this function, and tells nobody else
            self._strategy.train_metrics_aggr_fn = self._note_chosen

    def compose(self, weights: Arrays, request: TrainRequest, nodes: Mapping[str, int]) -> list[Message]:
        """The messages that ask each site of `nodes` (by name) for one round of training from `weights`.

        Raises:
            ProtocolError: see :meth:`server.aggregation.scaffold.ControlVariates.corrections`.
        """
        if request.round != self._round:
            self._round, self._sent = request.round, {}
        self._base = weights
        forget_weights(self._strategy)
        record = array_record(weights)
        view = SampledView(tuple(nodes.values()))
        messages = list(self._strategy.configure_train(request.round, record, request_config(request), view))
        if self._variates is not None:
            self._sent |= self._variates.corrections(request.round, weights, nodes)
            self._correct(messages, record, request, nodes)
        for message in messages:
            message.metadata.group_id = str(request.round)
        self._request = messages[0]
        return messages

    def correction(self, site: str) -> Correction | None:
        """What `site` was sent beside the weights in the round that was composed last; None but for SCAFFOLD."""
        return self._sent.get(site)

    def _correct(
        self, messages: list[Message], record: ArrayRecord, request: TrainRequest, nodes: Mapping[str, int]
    ) -> None:
        """Give each site a content of its own, with its correction beside the weights and named in the request."""
        sites = {node: site for site, node in nodes.items()}
        for message in messages:
            sent = self._sent[sites[message.metadata.dst_node_id]]
            named = {f"{CORRECTION}{name}": array for name, array in sent.tensors.items()}
            own = request.model_copy(update={"correction_sha256": sent.sha256})
            arrays = ArrayRecord({**record, **array_record(named)})
            message.content = RecordDict({ARRAYS: arrays, MESSAGE: request_config(own)})

    def aggregate(self, round_number: int, updates: Mapping[str, Arrays]) -> dict[str, NDArray[np.float32]]:
        """Checked updates by site -> new weights, float32. Sites in name order, weighted by the protocol's constants
        where the strategy knows weights.

        Raises:
            RoundError: called before :meth:`compose`, or the result is not finite.
        """
        if self._request is None or not updates:
            raise RoundError("nothing to aggregate", found=f"{len(updates)} updates", expected="at least one asked for")
        if isinstance(self._strategy, FedTrimmedAvg):
            self._strategy.beta = trim_share(self._terms.byzantine, len(updates))
        # Krum compares squared distances by |x|^2 + |y|^2 - 2 x y in float32, in which the small differences of large
        # weights drown: it is given the updates' steps, which lie as far apart as the weights that they lead to.
        origin = self._base if self._terms.strategy == "krum" else None
        replies = [self._reply(self._request, site, _less(updates[site], origin)) for site in sorted(updates)]
        self._chosen = []
        record, _ = self._strategy.aggregate_train(round_number, replies)
        self.taken = tuple(
            site for site, reply in zip(sorted(updates), replies, strict=True)
            if not self._chosen or any(reply.content is chosen for chosen in self._chosen)
        )  # fmt: skip
        if record is None:
            raise RoundError("the strategy returned no weights", found=type(self._strategy).__name__)
        # FedAdam's step size is a numpy float64, which makes its result float64 (NEP 50).
        result = {name: np.asarray(array.numpy(), dtype=np.float32) for name, array in record.items()}
        if origin is not None:
            result = {name: np.asarray(origin[name] + array, dtype=np.float32) for name, array in result.items()}
        if not all(np.isfinite(array).all() for array in result.values()):
            raise RoundError("the aggregate is not finite", remedy="lower federation.server_learning_rate")
        if self._variates is not None:
            self._variates.learn(round_number, self._base, updates, self._sent)
        resting = {name for name in result if _rests(name, self._base, updates)}
        return {name: self._base[name] if name in resting else array for name, array in result.items()}

    def aggregate_mean(
        self, round_number: int, mean: Arrays, sites: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """The securely summed mean of the updates of `sites` -> new weights: to the strategy it is one site's update.

        Raises:
            RoundError: as :meth:`aggregate`.
        """
        weights = self._weights
        try:
            self._weights = {SUM: 1.0}
            return self.aggregate(round_number, {SUM: mean})
        finally:
            self._weights, self.taken = weights, tuple(sorted(sites))

    def _note_chosen(self, records: list[RecordDict], _: str) -> MetricRecord:
        self._chosen = records
        return MetricRecord()

    def _reply(self, request: Message, site: str, update: Arrays) -> Message:
        metrics = MetricRecord({WEIGHT: float(self._weights[site])})
        return Message(RecordDict({ARRAYS: array_record(update), "metrics": metrics}), reply_to=request)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """What the next round needs besides the weights, by name; empty for strategies that remember nothing."""
        if self._variates is not None:
            return self._variates.state()
        return remembered(self._strategy, self._terms.strategy, sorted(self._base))

    def load_state(self, state: Arrays) -> None:
        """Take up the state of a checkpoint.

        Raises:
            StorageError: the state belongs to another strategy.
        """
        if self._variates is not None:
            self._variates.load_state(state)
        else:
            remember(self._strategy, self._terms.strategy, state)


def _less(update: Arrays, origin: Arrays | None) -> Arrays:
    return update if origin is None else {name: np.asarray(array - origin[name]) for name, array in update.items()}


def _rests(name: str, base: Arrays, updates: Mapping[str, Arrays]) -> bool:
    """Whether every site returned a tensor as it got it, to the bit: a phase leaves it alone, and so does the server.

    An average of equal numbers differs from them in the last bit, and a server's momentum would go on moving them; the
    sites would then encode all their films again in every round.
    """
    return all(np.array_equal(update[name], base[name]) for update in updates.values())
