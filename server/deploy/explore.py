"""From a study's protocol to an exploration before it: who, by which contract, which counts, how private."""

from __future__ import annotations

from collections.abc import Sequence

from shared_model.contract import load_contract
from shared_model.contract.exploration import layout
from shared_model.errors import ProtocolError
from shared_model.protocol import Protocol
from shared_model.strategies import LEAST_SUM_SITES

SUPPRESS_BELOW = 5
BINS = 10


def exploration_of(
    protocol: Protocol, *, fields: Sequence[str] = (), bins: int = BINS, noise: float = 0.0,
    suppress_below: int = SUPPRESS_BELOW, name: str | None = None,
) -> Protocol:  # fmt: skip
    """The protocol of an exploration among the sites of `protocol`.

    Args:
        fields: of the contract; empty: all.
        noise: of the whole vector of counts, divided by its sensitivity; 0: exact, without differential privacy.

    Raises:
        ProtocolError: an unknown field, or too few sites for a secure sum.
    """
    if protocol.contract.sha256 != load_contract().sha256:
        raise ProtocolError("the protocol is by another data contract than is installed",
                            found=protocol.contract.version, expected=load_contract().version)  # fmt: skip
    layout(load_contract(), fields=fields, bins=bins)
    if len(protocol.federation.sites) < LEAST_SUM_SITES:
        raise ProtocolError("an exploration is a secure sum, and of fewer than 3 sites it would hide nothing",
                            found=len(protocol.federation.sites), expected=f"{LEAST_SUM_SITES} or more")  # fmt: skip
    terms = protocol.model_dump(mode="json")
    terms["study"] = name or f"{protocol.study}-explore"[:63]
    first = terms["training"]["phases"][0] | {
        "rounds": 1, "sample_rate": None, "steps_per_round": None, "noise_factor": 1.0,
    }  # fmt: skip
    terms["training"] |= {
        "engine": "loop" if noise > 0 else "batch", "sample_rate": 1.0, "steps_per_round": 1, "phases": [first],
        "oversampling": "none", "gradient_clip": 1.0, "proximal_mu": 0.0,
    }  # fmt: skip
    terms["privacy"] |= {"mode": "patient" if noise > 0 else "none", "noise_multiplier": noise, "metrics": "none"}
    sites = [site | {"weight": 1.0} for site in terms["federation"]["sites"]]
    terms["federation"] |= {
        "strategy": "fedavg", "secure_sum": "masked", "byzantine": 0, "krum_select": 1, "personal": "none",
        "sites": sites, "sites_per_round": len(sites), "quorum": max(LEAST_SUM_SITES, protocol.federation.quorum),
    }  # fmt: skip
    terms["exploration"] = {"fields": list(fields), "bins": bins, "suppress_below": suppress_below}
    return Protocol.create(terms, source="the exploration")
