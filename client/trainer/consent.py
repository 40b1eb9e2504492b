"""A site's consent to a study: the protocol in words, what it would cost here, approval, refusal; for `site review`.

Run by the site's administrator as the trainer's user: it reads cohort and ledger, and what is approved here is all that
the trainer ever serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.deploy.home import Policy, SiteHome
from client.privacy.accountant import Account
from client.privacy.ledger import Ledger
from shared_model.cohort import Cohort, split_indices
from shared_model.errors import ConfigError, ProtocolError, SignatureError
from shared_model.private_files import make_private_folder, remove_private, write_private
from shared_model.protocol import Protocol
from shared_model.signed_protocol import Coordinator, SignedProtocol

Standing = Literal["proposed", "approved", "declined"]
DECLINED = ".declined"


@dataclass(frozen=True, kw_only=True)
class Review:
    """What an administrator has to know of one proposed study.

    patients: of this site that would be trained on (evaluated, at the evaluator). epsilon_before, epsilon_after: of
    each of them over all studies, at the protocol's delta; None where nothing is trained or nothing is private.
    leaves: what would leave the building, in words. faults: why the trainer would refuse it; empty: it would not.
    """

    protocol: Protocol
    standing: Standing
    patients: int
    parameters: int
    epsilon_before: float | None
    epsilon_after: float | None
    epsilon_limit: float | None
    leaves: Sequence[str]
    faults: Sequence[str]


def coordinator_of(home: SiteHome) -> Coordinator:
    """Whose protocols are to be read here.

    Raises:
        ConfigError: not enrolled yet. SignatureError: the courier brings another one than was accepted.
    """
    offered, trusted = home.offered_coordinator(), home.trusted_coordinator()
    if trusted is not None:
        if offered is not None and offered != trusted:
            raise SignatureError("the courier's coordinator is not the one that this site accepted",
                                 found=offered.name, expected=trusted.name,
                                 remedy="call the coordinator and compare the six words of its key")  # fmt: skip
        return trusted
    if offered is None:
        raise ConfigError("this site has no certificate yet, so nothing was proposed to it",
                          remedy="`mammofed site join` waits for the coordinator's confirmation")  # fmt: skip
    return offered


def proposals(home: SiteHome, *, release: str) -> dict[str, SignedProtocol]:
    """What lies in the inbox, by study; files that are not the coordinator's are passed over.

    Raises:
        ConfigError, SignatureError: see :func:`coordinator_of`.
    """
    coordinator, found = coordinator_of(home), dict[str, SignedProtocol]()
    for path in sorted(home.inbox.glob("*.json")):
        try:
            signed = SignedProtocol.read(path, coordinator=coordinator, release=release)
        except (ProtocolError, SignatureError):
            continue  # `refused` says why
        found[signed.protocol.study] = signed
    return found


def refused(home: SiteHome, *, release: str) -> dict[str, str]:
    """Files of the inbox that nobody can approve, and why."""
    coordinator, found = coordinator_of(home), dict[str, str]()
    for path in sorted(home.inbox.glob("*.json")):
        try:
            SignedProtocol.read(path, coordinator=coordinator, release=release)
        except (ProtocolError, SignatureError) as error:
            found[path.name] = str(error)
    return found


def review(home: SiteHome, signed: SignedProtocol) -> Review:
    """Work out what a study would mean here.

    Raises:
        ConfigError: the policy is wrong. CohortError: the cohort cannot be read.
    """
    protocol, policy = signed.protocol, Policy.read(home.policy_file)
    settings = home.identity().settings
    trains = settings.role.value == "site"
    cohort = Cohort.open(policy.cohort)
    rest = "train" if trains else "selection"
    split = split_indices(cohort, salt=policy.salt, fractions={rest: 1.0 - policy.test_fraction,
                                                               "test": policy.test_fraction})  # fmt: skip
    patients = len(split["train"]) if trains else len(cohort)
    parameters = _parameters(protocol)
    before = after = None
    if trains and protocol.private:
        account = Ledger(home.state / "ledger.json").account("train")
        before = account.epsilon(delta=protocol.privacy.delta)
        after = _after(account, protocol).epsilon(delta=protocol.privacy.delta)
    return Review(
        protocol=protocol, standing=standing(home, protocol), patients=patients, parameters=parameters,
        epsilon_before=before, epsilon_after=after, epsilon_limit=policy.epsilon_limit,
        leaves=_leaves(protocol, parameters, trains=trains),
        faults=_faults(home, protocol, policy, cohort, patients, after, trains=trains),
    )  # fmt: skip


def approve(home: SiteHome, signed: SignedProtocol) -> Path:
    """Let the trainer serve a study; it finds the file by itself, and a change of one letter is another protocol.

    Raises:
        ConfigError: nothing could be served. StorageError: the disk refuses.
    """
    home.trust(coordinator_of(home))
    make_private_folder(home.protocols)
    path = home.protocols / f"{signed.protocol.study}-{signed.sha256[:16]}.json"
    write_private(path, signed.to_json().encode())
    remove_private(_declined(home, signed.protocol))
    return path


def decline(home: SiteHome, signed: SignedProtocol) -> None:
    """Say no; takes back an approval. Rounds that are running then get a refusal in words."""
    remove_private(home.protocols / f"{signed.protocol.study}-{signed.sha256[:16]}.json")
    write_private(_declined(home, signed.protocol), b"")


def standing(home: SiteHome, protocol: Protocol) -> Standing:
    """What was decided on a study."""
    if (home.protocols / f"{protocol.study}-{protocol.sha256[:16]}.json").exists():
        return "approved"
    return "declined" if _declined(home, protocol).exists() else "proposed"


def _declined(home: SiteHome, protocol: Protocol) -> Path:
    return home.trainer / f"{protocol.study}-{protocol.sha256[:16]}{DECLINED}"


def _after(account: Account, protocol: Protocol) -> Account:
    for sigma, rate, steps in protocol.mechanisms(protocol.rounds):
        account = account.add(noise_multiplier=sigma, sample_rate=rate, steps=steps)
    return account


def _parameters(protocol: Protocol) -> int:
    from shared_model.fusion import FusionConfig, build_model

    config = FusionConfig(
        size=protocol.model.size, fusion=protocol.model.fusion, n_clinical=protocol.contract.n_features,
        height=protocol.pipeline.height, width=protocol.pipeline.width,
    )  # fmt: skip
    model = build_model(config, seed=protocol.seed, prevalence=protocol.loss.prevalence)
    return sum(int(parameter.numel()) for parameter in model.parameters())


def _leaves(protocol: Protocol, parameters: int, *, trains: bool) -> list[str]:
    if not trains:
        return ["scores' summary (AUC, thresholds, calibration) of the held-out cohort, no row of a patient"]
    noised = "clipped and noised for every patient" if protocol.private else "NOT protected by differential privacy"
    beside = "epsilon spent" if protocol.private else "the mean training loss"
    words = [f"each round: {parameters:,} weights ({4 * parameters / 1e6:.1f} MB), {noised}",
             f"each round: seconds, and {beside}"]  # fmt: skip
    if protocol.privacy.metrics == "final":
        words.append("once, at the end: one " + ("noised " if protocol.private else "")
                     + "histogram of this site's own test scores")  # fmt: skip
    return words


def _faults(
    home: SiteHome, protocol: Protocol, policy: Policy, cohort: Cohort, patients: int, after: float | None, *,
    trains: bool,
) -> list[str]:  # fmt: skip
    """What the trainer will refuse, said now; the trainer asks again for every request."""
    faults = []
    settings = home.identity().settings
    if trains and settings.site not in {site.name for site in protocol.federation.sites}:
        return [f"{settings.site} has no part in it"]
    if trains and policy.private_only and not protocol.private:
        faults.append("it trains without differential privacy, which this site's policy refuses")
    if trains and policy.delta_limit is not None and protocol.private and protocol.privacy.delta > policy.delta_limit:
        faults.append(f"its delta {protocol.privacy.delta:g} is above this site's limit {policy.delta_limit:g}")
    for what, found, expected in (
        ("data contract", cohort.contract_sha256, protocol.contract.sha256),
        ("imaging pipeline", cohort.pipeline_sha256, protocol.pipeline.sha256),
    ):
        if found != expected:
            faults.append(f"this site's cohort was prepared by another {what}: prepare it again")
    if trains:
        public = protocol.federation.site(settings.site).patients
        if patients > 2 * public:
            faults.append(f"it says that this site has about {public} patients; there are far more")
        if after is not None:
            faults += _budget_faults(after, own=policy.epsilon_limit, promised=protocol.privacy.epsilon)
    return faults


def _budget_faults(after: float, *, own: float | None, promised: float) -> list[str]:
    """What a study would cost beyond the least of the two limits, both of them over all studies."""
    limit, whose = (promised, "what the study promises over all studies") if own is None or promised < own else (
        own, "this site's limit")  # fmt: skip
    if after <= limit + 1e-6 * max(1.0, limit):  # as calibrated: the accountant meets the promise to rounding
        return []
    return [f"it would bring each patient to epsilon {after:.2f}, above {whose}, {limit:g}: the site takes part until "
            "then and abstains after it"]  # fmt: skip
