"""Which of Flower's strategies stands behind each name of a protocol, and what it remembers; for `strategies`.

Averages: FedAvg (McMahan et al. 2017, https://arxiv.org/abs/1602.05629); FedProx (Li et al. 2020,
https://arxiv.org/abs/1812.06127), whose proximal term acts at the sites. Weighted by the protocol's constants.

Server optimisers, on the same average as their gradient: FedAvgM (Hsu et al. 2019, https://arxiv.org/abs/1909.06335),
FedAdam and FedYogi (Reddi et al. 2021, https://arxiv.org/abs/2003.00295). They remember moments.

Robust ones, which know no weights, since a site could lie about itself: the coordinate-wise median and trimmed mean
(Yin et al. 2018, https://arxiv.org/abs/1803.01498), Krum and multi-Krum (Blanchard et al. 2017,
https://arxiv.org/abs/1703.02757). They withstand `byzantine` = f sites. Flower's trimmed mean wants a share beta and
cuts int(beta n) updates at either end: 0.1 of four sites is nobody. A protocol says f; `trim_share` makes beta of it.

SCAFFOLD (Karimireddy et al. 2020, https://arxiv.org/abs/1910.06378) averages with a server step; see `scaffold`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, FedTrimmedAvg, FedYogi, MultiKrum
from numpy.typing import NDArray

from server.aggregation.flower import ARRAYS, MESSAGE
from shared_model.errors import ProtocolError, StorageError
from shared_model.messages import Arrays
from shared_model.protocol import Protocol

WEIGHT = "num-examples"  # Flower's name; here it is a constant of the protocol, whatever a site counts
COMMON: Mapping[str, Any] = {
    "min_train_nodes": 1, "min_available_nodes": 1, "weighted_by_key": WEIGHT, "arrayrecord_key": ARRAYS,
    "configrecord_key": MESSAGE,
}  # fmt: skip
# Attributes of Flower's classes that one round hands to the next. `current_arrays` is none of them: it is always the
# weights of the round (FedOpt sets it in each `configure_train`, FedAvgM is made to by `forget_weights`).
MEMORY: Mapping[str, tuple[str, ...]] = {
    "fedavgm": ("momentum_vector",), "fedadam": ("m_t", "v_t"), "fedyogi": ("m_t", "v_t"),
}  # fmt: skip


def make_strategy(protocol: Protocol) -> FedAvg:
    """The Flower strategy that the protocol names, with the smallest node counts: the loop has its own quorum.

    Raises:
        ProtocolError: FedProx without a proximal term or FedAvgM without an effect, which would be FedAvg.
    """
    makers: Mapping[str, Callable[[Protocol], FedAvg]] = {
        "fedavg": lambda _: FedAvg(**COMMON), "fedprox": _fedprox, "fedavgm": _fedavgm,
        "fedadam": lambda p: FedAdam(**_adaptive(p), **COMMON), "fedyogi": lambda p: FedYogi(**_adaptive(p), **COMMON),
        "fedmedian": lambda _: FedMedian(**COMMON), "trimmed_mean": lambda _: FedTrimmedAvg(**COMMON),
        "krum": _krum, "scaffold": _scaffold,
    }  # fmt: skip
    return makers[protocol.federation.strategy](protocol)


def trim_share(byzantine: int, replies: int) -> float:
    """Flower's beta for cutting exactly f of n updates at either end: int(beta n) = f whatever the rounding, and below
    1/2 for every n of at least 2 f + 1."""
    return (byzantine + 0.25) / replies


def forget_weights(strategy: FedAvg) -> None:
    """Make FedAvgM start from the weights of the coming round, so that a resumed study has nothing to restore."""
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = None


def remembered(strategy: FedAvg, kind: str, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """What the strategy remembers as `<attribute>.<tensor>` -> array. names: the model's tensors in sorted order."""
    state: dict[str, NDArray[np.float32]] = {}
    for attribute in MEMORY.get(kind, ()):
        value = getattr(strategy, attribute) or {}
        by_name = value if isinstance(value, Mapping) else dict(zip(names, value, strict=True))
        state |= {f"{attribute}.{name}": np.asarray(array, dtype=np.float32) for name, array in by_name.items()}
    return state


def remember(strategy: FedAvg, kind: str, state: Arrays) -> None:
    """Put into the strategy what :func:`remembered` gave.

    Raises:
        StorageError: the state belongs to another strategy.
    """
    parts: dict[str, dict[str, NDArray[np.float32]]] = {}
    for key in sorted(state):
        attribute, _, name = key.partition(".")
        parts.setdefault(attribute, {})[name] = np.asarray(state[key], dtype=np.float32)
    wanted = MEMORY.get(kind, ())
    if parts and set(parts) != set(wanted):
        raise StorageError("checkpoint holds the state of another strategy", found=sorted(parts), expected=kind)
    for attribute in wanted:
        value = parts.get(attribute)
        # FedAvgM keeps a bare list in the order of the weights' names, which are sent sorted.
        setattr(strategy, attribute, list(value.values()) if value and kind == "fedavgm" else value)


def _adaptive(protocol: Protocol) -> dict[str, Any]:
    terms = protocol.federation
    return {
        "eta": terms.server_learning_rate, "eta_l": protocol.training.phases[0].learning_rate,
        "beta_1": terms.server_beta_1, "beta_2": terms.server_beta_2, "tau": terms.server_tau,
    }  # fmt: skip


def _fedprox(protocol: Protocol) -> FedAvg:
    if protocol.training.proximal_mu == 0:
        raise ProtocolError("federation.strategy: fedprox needs a proximal term", found="training.proximal_mu 0",
                            expected="above 0", remedy="set proximal_mu, or choose fedavg")  # fmt: skip
    return FedProx(proximal_mu=protocol.training.proximal_mu, **COMMON)


def _fedavgm(protocol: Protocol) -> FedAvg:
    terms = protocol.federation
    if terms.server_beta_1 == 0:
        raise ProtocolError("federation.strategy: fedavgm needs a momentum", found="federation.server_beta_1 0",
                            expected="above 0", remedy="set server_beta_1, or choose fedavg")  # fmt: skip
    return FedAvgM(server_learning_rate=terms.server_learning_rate, server_momentum=terms.server_beta_1, **COMMON)


def _krum(protocol: Protocol) -> FedAvg:
    terms = protocol.federation
    return MultiKrum(num_malicious_nodes=terms.byzantine, num_nodes_to_select=terms.krum_select, **COMMON)


def _scaffold(protocol: Protocol) -> FedAvg:
    return FedAvgM(server_learning_rate=protocol.federation.server_learning_rate, server_momentum=0.0, **COMMON)
