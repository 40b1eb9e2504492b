"""The secure sum of one attempt: from who has trained to the mean of their updates. Called by `attempt`.

The half-done sum lies in `sums/` of the run directory until the next round begins, so that a coordinator that died goes
on with it. Once a site may have helped to unmask, later attempts of the round go on with that very sum as well: its
values can be in no other one, and training anew would cost the patients again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.aggregation.gate import norm_bounds
from server.aggregation.secure import SumPlan, is_opened, kept_terms, run_secure_sum
from server.rounds.study import Study
from shared_model.errors import StorageError
from shared_model.messages import Arrays
from shared_model.private_files import remove_private
from shared_model.protocol import Protocol
from shared_model.secagg import SecureSum
from shared_model.secagg.session import LEAST_SITES, Session
from shared_model.secagg.terms import UPDATE, coefficients, subject_of, terms_of

FOLDER = "sums"
MOST_TOLD = 1e9  # more than is believed of anybody (shared_model.clamp)


@dataclass(frozen=True, kw_only=True)
class MeanUpdate:
    """What a round's sum gave. weights: the mean of the sites' new weights; None when the sum failed.

    sites: who is in it, sorted. lost: why the others are not. spent, traffic, seconds: see `SumOutcome`.
    """

    weights: Arrays | None
    sites: tuple[str, ...]
    lost: Mapping[str, str]
    fault: str
    spent: bool
    error: float
    traffic: Mapping[str, tuple[int, int]]
    seconds: Mapping[str, tuple[float, float]]


def kept_sum(run_dir: Path, what: str, round_number: int, attempt: int) -> Path:
    """Where the coordinator keeps a sum."""
    return run_dir / FOLDER / f"{what}-{round_number:04d}-{attempt:04d}.sum"


def sum_updates(
    study: Study, round_number: int, attempt: int, *, base: Arrays, trained: Collection[str], asked: Mapping[str, int],
    told: Mapping[str, float],
) -> MeanUpdate | None:  # fmt: skip
    """Sum the updates of the sites that trained; None when they are too few for a sum.

    Args:
        base: weights that they were sent.
        trained: sites whose training request was answered.
        asked: the attempt number of each site's training request.
        told: by site, the noise multiplier that it says it used. Of a site that was in a sum that was begun before,
            and does not answer now, the most that is believed of anybody is reckoned with.

    Raises:
        StorageError: the half-done sum cannot be kept, or is damaged or of another round.
    """
    keep = place_of(study, UPDATE, round_number, attempt)
    noise = {site.name: told.get(site.name, MOST_TOLD) for site in study.protocol.federation.sites}
    bounds = norm_bounds(study.protocol, round_number, base, noise=noise)
    terms = _terms(study, round_number, attempt, keep, base, trained=trained, bounds=bounds)
    if terms is None:
        return None
    federation = study.protocol.federation
    assert study.signing is not None
    plan = SumPlan(terms=terms, asked=asked, least=federation.quorum, tries=federation.attempts,
                   deadline_s=federation.deadline_s)  # fmt: skip
    outcome = run_secure_sum(study.exchange, plan, signing=study.signing, nodes=study.roster.sites, keep=keep)
    found, fault, weights = outcome.found, outcome.fault, None
    if found is not None:
        fault = _beyond(found, bounds, study.protocol)
        weights = None if fault else _weights(found, base)
    spent = outcome.spent or (found is not None and weights is None)
    if spent:  # or the next attempt would go on with what gives nothing
        remove_private(keep)
    return MeanUpdate(
        weights=weights, sites=found.survivors if found is not None else (), lost=outcome.lost, fault=fault,
        spent=spent, error=found.error / found.weight if found is not None else 0.0, traffic=outcome.traffic,
        seconds=outcome.seconds,
    )  # fmt: skip


def forget_sums(run_dir: Path, *, before: int) -> None:
    """Remove the sums of rounds that are closed."""
    for path in sorted((run_dir / FOLDER).glob("*.sum")):
        number = path.stem.rsplit("-", 2)[1]
        if number.isdecimal() and int(number) < before:
            remove_private(path)


def place_of(study: Study, what: str, round_number: int, attempt: int) -> Path:
    """Where the coordinator keeps the sum that is gone on with: one of an earlier attempt that may have been opened, or
    this attempt's own.

    Raises:
        StorageError: an earlier one is damaged.
    """
    assert study.signing is not None
    for earlier in range(1, attempt):
        path = kept_sum(study.run_dir, what, round_number, earlier)
        if is_opened(path, signing=study.signing):
            return path
    return kept_sum(study.run_dir, what, round_number, attempt)


def _terms(
    study: Study, round_number: int, attempt: int, keep: Path, base: Arrays, *, trained: Collection[str],
    bounds: Mapping[str, float],
) -> Session | None:  # fmt: skip
    """Of the sum that was begun, or of a new one over those that trained."""
    assert study.signing is not None
    protocol = study.protocol
    begun = kept_terms(keep, signing=study.signing)
    if begun is not None:
        if begun.subject != subject_of(protocol, what=UPDATE, round_number=round_number) or begun.attempt > attempt:
            raise StorageError(f"{keep} is of another round or study",
                               remedy="restore the run directory from its backup")  # fmt: skip
        return begun
    keys = {site: study.roster.keys[site] for site in trained if site in study.roster.keys}
    if len(keys) < max(LEAST_SITES, protocol.federation.quorum):
        return None
    return terms_of(
        protocol, what=UPDATE, round_number=round_number, attempt=attempt, keys=keys, bound=max(bounds.values()),
        coordinator=study.signing.public, length=sum(int(array.size) for array in base.values()),
    )  # fmt: skip


def _beyond(found: SecureSum, bounds: Mapping[str, float], protocol: Protocol) -> str:
    """The sanity gate of a sum, in words when it does not pass: its norm is at most the sites' bounds together.

    What is not finite, or beyond the bound of one number, no site can have masked.
    """
    shares = coefficients(protocol, UPDATE)
    allowed = sum(shares[site] * bounds[site] for site in found.survivors) + found.error * math.sqrt(found.total.size)
    norm = float(np.linalg.norm(found.total))
    if norm <= allowed:
        return ""
    return (f"norm: the sum of the updates has norm {norm:.4g}, the protocol allows {allowed:.4g}: at least one of its "
            "sites sent what no honest training gives")  # fmt: skip


def _weights(found: SecureSum, base: Arrays) -> dict[str, NDArray[np.float32]]:
    """The mean of the sites' new weights: what they were sent, and the mean of what they changed."""
    mean, start, weights = found.mean, 0, {}
    for name in sorted(base):
        part = mean[start : start + base[name].size].reshape(base[name].shape)
        weights[name] = np.asarray(base[name].astype(np.float64) + part, dtype=np.float32)
        start += base[name].size
    return weights
