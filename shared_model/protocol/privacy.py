"""Protocol: how private the patients are, and what is told of them beside the updates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared_model.protocol.terms import Name, NonNegative, Positive, Terms


class PrivacyTerms(Terms):
    """The privacy promise, for each patient of each site, under add-or-remove-one adjacency.

    clip: C, greatest L2 norm of one patient's gradient; noise_multiplier: sigma, noise std divided by C.
    epsilon: what sigma was calibrated to over all rounds at this delta; a site that has less left abstains.
    metrics: what is released of the sites' own test women, once, at the end. `final`: each site's noised score
        histogram; `joint`: histograms by two models' scores at once (shared_model.evaluation.joint), for one figure of
        all sites together: exact out of a secure sum, or without one each site's with noise; `none`.
    metrics_noise_multiplier: noise std of each histogram count (one patient changes one count by one).
    """

    mode: Literal["patient", "none"]
    clip: Positive
    noise_multiplier: NonNegative
    epsilon: NonNegative
    delta: float = Field(gt=0, lt=1)
    accountant: Literal["prv"] = "prv"
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    unit: Literal["patient"] = "patient"
    metrics: Literal["final", "joint", "none"]
    metrics_noise_multiplier: NonNegative
    metrics_bins: int = Field(ge=4, le=256)


class ExplorationTerms(Terms):
    """Counts before a study, over all sites together: how many women, films and values there are; nobody is trained on.

    fields: names of the contract's; empty: all. bins: of a number. suppress_below: smaller counts are not shown.
    The rest of the protocol says who, by which contract, and how private: one round of one step on every woman, so that
    `privacy.noise_multiplier` is the noise of the whole vector of counts divided by its sensitivity, and the ledger and
    the policy reckon with it as with any round. Mode `none` is the exact sum.
    """

    fields: tuple[Name, ...] = Field(default=(), max_length=200)
    bins: int = Field(ge=2, le=64)
    suppress_below: int = Field(ge=0, le=1000)
