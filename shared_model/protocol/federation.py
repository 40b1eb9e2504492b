"""Protocol: who takes part, and how their updates become one model."""

from __future__ import annotations

from pydantic import Field

from shared_model.errors import ProtocolError
from shared_model.protocol.terms import Name, Positive, Terms
from shared_model.strategies import Personal, SecureSum, Strategy


class SiteTerms(Terms):
    """One hospital as all parties know it. patients: *rounded*, public number of training patients."""

    name: Name
    patients: int = Field(ge=1)
    weight: Positive


class FederationTerms(Terms):
    """Who takes part and how updates become one model. deadline_s: seconds a round waits for replies.

    server_beta_1: momentum of fedavgm, first-moment decay of fedadam and fedyogi; server_beta_2: second-moment decay.
    byzantine: f, sites that may send anything without carrying the model away; above 0 for robust strategies only.
    krum_select: how many of the most central updates `krum` averages (more than 1: multi-Krum).
    personal: which tensors each site keeps a copy of its own of.
    secure_sum: `masked`: updates reach the coordinator as their sum only (`shared_model.secagg`); `none`: one by one.
    """

    strategy: Strategy
    server_learning_rate: Positive
    server_beta_1: float = Field(ge=0, lt=1)
    server_beta_2: float = Field(ge=0, lt=1)
    server_tau: Positive
    byzantine: int = Field(default=0, ge=0, le=500)
    krum_select: int = Field(default=1, ge=1, le=1000)
    personal: Personal = "none"
    secure_sum: SecureSum = "none"
    sites: tuple[SiteTerms, ...] = Field(min_length=1, max_length=1000)
    sites_per_round: int = Field(ge=1)
    quorum: int = Field(ge=1)
    deadline_s: Positive
    attempts: int = Field(ge=1, le=10)

    def site(self, name: str) -> SiteTerms:
        """The terms of one site by name."""
        for site in self.sites:
            if site.name == name:
                return site
        raise ProtocolError("site is not part of the study", found=name, expected=[s.name for s in self.sites])
