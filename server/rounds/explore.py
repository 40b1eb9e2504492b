"""An exploration at the coordinator: one secure sum of all sites' counts, and what it says; called by the loop.

The document `exploration.json` of the run directory::

    {"study", "protocol_sha256", "sites": [who is in it], "lost": {site: why not}, "exact": bool, "noise_std",
     "suppress_below", "histograms": [{"name", "unit", "edges", "cells", "counts": [number or null, ...]}]}

A count below `suppress_below` is null there; noised counts are not suppressed, for the noise is what protects them. The
coordinator's process has seen the whole sum, and no site's part of it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

from server.aggregation.secure import SumOutcome, SumPlan, kept_terms, run_secure_sum
from server.rounds.checkpoint import write_bytes
from server.rounds.roll_call import call_roll
from server.rounds.states import StudyStep
from server.rounds.study import Study, names_in_words, plain
from server.rounds.sums import place_of
from shared_model.contract import load_contract
from shared_model.contract.exploration import Histogram, documents, layout, length, sensitivity
from shared_model.errors import ConfigError, ProtocolError, QuorumError, StorageError
from shared_model.protocol import Protocol
from shared_model.secagg.session import LEAST_SITES, Session
from shared_model.secagg.terms import COUNTS, least_bound, terms_of

FILE: Final = "exploration.json"
ROUND: Final = 0
MOST_NOISE: Final = 8.0  # standard deviations; beyond it a site would not encode its value, and fall out
MAX_BYTES: Final = 8 << 20


def explore(study: Study) -> None:
    """Make the sum, write the document, and journal it as one step.

    A sum that was opened in an attempt that died is gone on with; its values are summed in no other.

    Raises:
        QuorumError: too few sites are there, or stay to the end.
        ProtocolError: the protocol was written for another contract than is installed.
        StorageError: the disk refuses.
    """
    histograms = _histograms(study.protocol)
    call_roll(study)
    fault = ""
    for attempt in range(1, study.protocol.federation.attempts + 1):
        outcome = _sum(study, attempt, histograms)
        if outcome.found is not None:
            _record(study, outcome, histograms)
            return
        fault = outcome.fault
        if outcome.spent:
            break
    raise QuorumError("the exploration has no sum", found=plain(fault), expected=f"{_least(study)} sites to the end",
                      remedy="see which sites are here, then resume it")  # fmt: skip


def read_exploration(run_dir: Path) -> dict[str, Any]:
    """The document of a run directory.

    Raises:
        ConfigError: there is none. StorageError: it is damaged.
    """
    try:
        with (run_dir / FILE).open("rb") as stream:
            return dict(json.loads(stream.read(MAX_BYTES)))
    except FileNotFoundError:
        raise ConfigError(f"no exploration has come to its end in {run_dir}", expected=FILE,
                          remedy="`mammofed server status` says how far it is") from None  # fmt: skip
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"{run_dir / FILE} cannot be read: {type(error).__name__}",
                           remedy="restore it from a backup") from None  # fmt: skip


def _histograms(protocol: Protocol) -> tuple[Histogram, ...]:
    terms, contract = protocol.exploration, load_contract()
    assert terms is not None
    if contract.sha256 != protocol.contract.sha256:
        raise ProtocolError("the exploration is by another data contract than this coordinator has",
                            found=protocol.contract.version, expected=contract.version,
                            remedy="run the protocol's release") from None  # fmt: skip
    return layout(contract, fields=terms.fields, bins=terms.bins)


def _least(study: Study) -> int:
    return max(LEAST_SITES, study.protocol.federation.quorum)


def _sum(study: Study, attempt: int, histograms: tuple[Histogram, ...]) -> SumOutcome:
    assert study.signing is not None
    keep, federation = place_of(study, COUNTS, ROUND, attempt), study.protocol.federation
    terms = kept_terms(keep, signing=study.signing) or _terms(study, attempt, histograms)
    plan = SumPlan(terms=terms, least=federation.quorum, tries=federation.attempts, deadline_s=federation.deadline_s)
    return run_secure_sum(study.exchange, plan, signing=study.signing, nodes=study.roster.sites, keep=keep)


def _terms(study: Study, attempt: int, histograms: tuple[Histogram, ...]) -> Session:
    assert study.signing is not None
    keys = {site: key for site, key in study.roster.keys.items() if site in study.roster.sites}
    if len(keys) < _least(study):
        raise QuorumError("too few sites for an exploration", found=len(keys), expected=f"at least {_least(study)}",
                          remedy="wait for the others, then resume it")  # fmt: skip
    protocol = study.protocol
    most = least_bound(protocol, COUNTS)
    return terms_of(
        protocol, what=COUNTS, round_number=ROUND, attempt=attempt, keys=keys, coordinator=study.signing.public,
        length=length(histograms), bound=most + MOST_NOISE * _std(protocol, histograms),
    )  # fmt: skip


def _std(protocol: Protocol, histograms: tuple[Histogram, ...]) -> float:
    """Noise of one site's counts as the protocol has it; a site whose policy asks for more adds more."""
    return protocol.noise_multiplier(1) * sensitivity(histograms)


def _record(study: Study, outcome: SumOutcome, histograms: tuple[Histogram, ...]) -> None:
    found, protocol, terms = outcome.found, study.protocol, study.protocol.exploration
    assert found is not None and terms is not None
    exact = not protocol.private
    counts = found.total.round() if exact else found.total  # whole numbers are summed without any error
    below = terms.suppress_below if exact else -math.inf
    document = {
        "study": protocol.study, "protocol_sha256": protocol.sha256, "sites": list(found.survivors),
        "lost": {site: plain(why) for site, why in outcome.lost.items()}, "exact": exact,
        "noise_std": 0.0 if exact else _std(protocol, histograms) * math.sqrt(len(found.survivors)),
        "suppress_below": terms.suppress_below if exact else 0,
        "histograms": documents(histograms, counts, below=below),
    }  # fmt: skip
    write_bytes(study.run_dir / FILE, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    with study.journal.study_step(StudyStep.EXPLORE):
        how = "exactly" if exact else f"with noise of {document['noise_std']:.3g} on each count"
        study.note("explored", f"the women of {names_in_words(found.survivors)} together, {how}; no site's own counts "
                   "were seen", data={"sites": len(found.survivors)})  # fmt: skip
