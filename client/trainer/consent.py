"""A site's consent to a study: the protocol in words, what it would cost here, approval, refusal; for `site review`.

Run by the site's administrator as the trainer's user: it reads cohort and ledger, and what is approved here is all that
the trainer ever serves.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.deploy.home import SiteHome
from client.deploy.policy_file import Policy
from client.privacy.ledger import Ledger
from client.privacy.policy import decide
from client.privacy.what_if import outlook
from client.trainer.apart import told_apart
from client.trainer.peers import NOBODY, Confirmed, confirm_peers, read_peers
from client.trainer.withdrawn import check_not_withdrawn
from shared_model.cohort import Cohort, split_indices
from shared_model.errors import CohortError, ConfigError, ProtocolError, SignatureError
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
    leaves: what would leave the building, in words. apart: what this sum and an earlier one would tell together.
    changes: what this site's policy does otherwise than it is asked.
    faults: why the trainer would refuse it; empty: it would not.
    """

    protocol: Protocol
    standing: Standing
    patients: int
    parameters: int
    epsilon_before: float | None
    epsilon_after: float | None
    epsilon_limit: float | None
    leaves: Sequence[str]
    apart: Sequence[str]
    changes: Sequence[str]
    faults: Sequence[str]


def coordinator_of(home: SiteHome) -> Coordinator:
    """Whose protocols are to be read here.

    Raises:
        ConfigError: not enrolled yet. SignatureError: the courier brings another one than was accepted.
    """
    offered, trusted = home.offered_coordinator(), home.trusted_coordinator()
    if trusted is not None:
        if offered is not None and offered != trusted:
            raise _another(offered, trusted)
        return trusted
    if offered is None:
        raise ConfigError("this site has no certificate yet, so nothing was proposed to it",
                          remedy="`mammofed site join` waits for the coordinator's confirmation")  # fmt: skip
    return offered


def _another(found: Coordinator, trusted: Coordinator) -> SignatureError:
    return SignatureError("the courier's coordinator is not the one that this site accepted",
                          found=f"{found.name}, key {found.key[:16]}",
                          expected=f"{trusted.name}, key {trusted.key[:16]}",
                          remedy="call the coordinator and compare the six words of its key")  # fmt: skip


def proposals(home: SiteHome, *, release: str) -> dict[str, SignedProtocol]:
    """What lies in the inbox, by study; files that are not the coordinator's are passed over.

    Raises:
        ConfigError, SignatureError: see :func:`coordinator_of`.
    """
    return _inbox(home, release)[0]


def refused(home: SiteHome, *, release: str) -> dict[str, str]:
    """Files of the inbox that nobody can approve, and why."""
    return _inbox(home, release)[1]


def _inbox(home: SiteHome, release: str) -> tuple[dict[str, SignedProtocol], dict[str, str]]:
    """Protocols by study, and by the file's name why others are none. Of two under one name neither is taken, but what
    was approved: nobody is to approve another one than was read."""
    coordinator = coordinator_of(home)
    named, wrong = dict[str, list[tuple[str, SignedProtocol]]](), dict[str, str]()
    for path in sorted(home.inbox.glob("*.json")):
        try:
            signed = SignedProtocol.read(path, coordinator=coordinator, release=release)
        except (ProtocolError, SignatureError) as error:
            wrong[path.name] = str(error)
        else:
            named.setdefault(signed.protocol.study, []).append((path.name, signed))
    found = {}
    for study, several in named.items():
        taken = [one for _, one in several if len(several) == 1 or standing(home, one.protocol) == "approved"]
        if len(taken) == 1:
            found[study] = taken[0]
        wrong |= {name: f"the coordinator signed {len(several)} protocols for a study {study}: call it"
                  for name, one in several if one not in taken or len(taken) > 1}  # fmt: skip
    return found, wrong


def review(home: SiteHome, signed: SignedProtocol) -> Review:
    """Work out what a study would mean here.

    Raises:
        ConfigError: the policy is wrong. CohortError: the cohort cannot be read.
    """
    protocol, policy = signed.protocol, Policy.read(home.policy_file)
    settings = home.identity().settings
    trains = settings.role.value == "site"
    cohort = Cohort.open(policy.cohort)
    women = _patients(cohort, policy, trains=trains)
    decision = decide(policy, protocol, len(women))
    parameters = _parameters(protocol)
    before = after = None
    if trains and protocol.private:
        cost = outlook(Ledger(home.state / "ledger.json"), protocol, decision, "train", pseudonyms=women,
                       epsilon_limit=policy.epsilon_limit)  # fmt: skip
        before, after = cost.before, cost.after
    return Review(
        protocol=protocol, standing=standing(home, protocol), patients=len(women), parameters=parameters,
        epsilon_before=before, epsilon_after=after, epsilon_limit=policy.epsilon_limit,
        leaves=_leaves(protocol, parameters, trains=trains, metrics=decision.metrics),
        apart=told_apart(protocol, home.protocols) if trains else [],
        changes=[str(clamp) for clamp in decision.clamps] if trains else [],
        faults=_faults(home, protocol, policy, cohort, len(women), after, trains=trains),
    )  # fmt: skip


def refusals(home: SiteHome, signed: SignedProtocol) -> list[str]:
    """Why the trainer would refuse a study as things are; the part of a review that takes no time.

    Raises:
        ConfigError: the policy is wrong. CohortError: the cohort cannot be read.
    """
    policy, trains = Policy.read(home.policy_file), home.identity().settings.role.value == "site"
    cohort = Cohort.open(policy.cohort)
    women = _patients(cohort, policy, trains=trains)
    return _faults(home, signed.protocol, policy, cohort, len(women), None, trains=trains)


def approve(home: SiteHome, signed: SignedProtocol, *, compared: Confirmed = NOBODY) -> Path:
    """Let the trainer serve a study; it finds the file by itself, and a change of one letter is another protocol.

    With the first approval the trainer learns whose signatures it takes: of whoever signed what is approved here, and
    nothing that the courier's files say by now.

    Args:
        compared: trainer keys of other sites whose six words were compared with their people; for a secure sum.

    Raises:
        ConfigError: the study sums securely, and the key of one of its sites was compared neither now nor before.
        SignatureError: of another coordinator than was accepted before. StorageError: the disk refuses.
    """
    trusted = home.trusted_coordinator()
    if trusted is not None and trusted != signed.coordinator:
        raise _another(signed.coordinator, trusted)
    check_not_withdrawn(home.trainer, signed.protocol.study)
    if signed.protocol.summed and home.identity().settings.role.value == "site":
        _confirm(home, signed.protocol, compared)
    home.trust(signed.coordinator)
    make_private_folder(home.protocols)
    path = home.protocols / _file(signed.protocol)
    write_private(path, signed.to_json().encode())
    remove_private(_declined(home, signed.protocol))
    return path


def _confirm(home: SiteHome, protocol: Protocol, compared: Confirmed) -> None:
    own = home.identity().settings.site
    others = {site.name for site in protocol.federation.sites} - {own}
    missing = sorted(others - read_peers(home.trainer).keys() - compared.keys())
    if missing:
        raise ConfigError("the study sums updates securely, and trainer keys of its sites were not compared yet",
                          found=", ".join(missing[:8]), expected="the six words of each, over the phone",
                          remedy="`mammofed site review` shows them once the site has joined")  # fmt: skip
    confirm_peers(home.trainer, {site: key for site, key in compared.items() if site in others})


def decline(home: SiteHome, study: str, *, release: str) -> bool:
    """Say no; takes back every approval of a study. Rounds that are running then get a refusal in words.

    An approval is taken back whatever the courier has in its inbox by now, or has lost.

    Returns:
        whether there was anything to say no to.
    """
    own = re.compile(re.escape(study) + r"-[0-9a-f]{16}")
    names = {path.stem for path in home.protocols.glob("*.json") if own.fullmatch(path.stem)}
    for name in names:
        remove_private(home.protocols / f"{name}.json")
    with contextlib.suppress(ConfigError, SignatureError):
        if (signed := proposals(home, release=release).get(study)) is not None:
            names.add(f"{study}-{signed.sha256[:16]}")
    for name in names:
        write_private(home.trainer / f"{name}{DECLINED}", b"")
    return bool(names)


def standing(home: SiteHome, protocol: Protocol) -> Standing:
    """What was decided on a study."""
    if (home.protocols / _file(protocol)).exists():
        return "approved"
    return "declined" if _declined(home, protocol).exists() else "proposed"


def _file(protocol: Protocol) -> str:
    return f"{protocol.study}-{protocol.sha256[:16]}.json"


def _declined(home: SiteHome, protocol: Protocol) -> Path:
    return home.trainer / f"{protocol.study}-{protocol.sha256[:16]}{DECLINED}"


def _patients(cohort: Cohort, policy: Policy, *, trains: bool) -> list[str]:
    """Pseudonyms of those who would be trained on; at the evaluator of all."""
    return _split(cohort, policy)["train"] if trains else list(cohort.pseudonyms)


def _split(cohort: Cohort, policy: Policy) -> dict[str, list[str]]:
    shares = {"train": 1.0 - policy.test_fraction, "test": policy.test_fraction}
    found = split_indices(cohort, salt=policy.salt, fractions=shares)
    return {name: [cohort.pseudonyms[i] for i in rows] for name, rows in found.items()}


def women_of(home: SiteHome) -> dict[str, list[str]]:
    """Pseudonyms of a site's women in `train` and in `test`.

    Raises:
        ConfigError: the policy is wrong, or this is the evaluator, which trains nobody.
        CohortError: the cohort cannot be read.
    """
    if home.config_for(None).role != "site":
        raise ConfigError("an evaluator trains nobody, so nothing is spent here", expected="a site")
    policy = Policy.read(home.policy_file)
    return _split(Cohort.open(policy.cohort), policy)


def _parameters(protocol: Protocol) -> int:
    from shared_model.fusion import FusionConfig, build_model

    model = build_model(FusionConfig.of(protocol), seed=protocol.seed, prevalence=protocol.loss.prevalence)
    return sum(int(parameter.numel()) for parameter in model.parameters())


def _leaves(protocol: Protocol, parameters: int, *, trains: bool, metrics: bool) -> list[str]:
    if not trains and protocol.exploration is not None:
        return ["nothing: an exploration counts the women of hospitals that train"]
    if not trains:
        return ["scores' summary (AUC, thresholds, calibration) of the held-out cohort, no row of a patient"]
    if protocol.exploration is not None:
        fields = ", ".join(protocol.exploration.fields) or "every field of the data contract"
        how = "noised at this site" if protocol.private else "exact in the sum, without differential privacy"
        return [f"once: counts of women by outcome, films and {fields}, masked: the coordinator sees the sum over the "
                f"sites only; {how}"]
    noised = "clipped and noised for every patient" if protocol.private else "NOT protected by differential privacy"
    masked = ", masked: the coordinator sees the sum over the sites only" if protocol.summed else ""
    words = [f"each round: {parameters:,} weights ({4 * parameters / 1e6:.1f} MB), {noised}{masked}"]
    steps = ", in steps of 12 %" if protocol.coarse_times else ""
    more = ", and epsilon spent" if protocol.private else "" if protocol.summed else ", and the mean training loss"
    words.append(f"each round: seconds by phase (waiting, loading, training, masking){steps}{more}")
    joint = protocol.privacy.metrics == "joint"
    if joint and protocol.summed:
        words.append("once, at the end: counts of this site's own test women by two models' scores, exact, in the "
                     "masked sum with the other sites; no epsilon covers that sum")  # fmt: skip
    elif joint and metrics:
        words.append("once, at the end: noised counts of this site's own test women by two models' scores")
    elif metrics:
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
    if trains:
        faults += [str(refusal) for refusal in decide(policy, protocol, patients).refusals]
    if trains and cohort.site != settings.site:
        faults.append(f"this site's cohort was prepared for another site, {cohort.site}")
    pipeline, contract = protocol.pipeline, protocol.contract
    for what, found, expected in (
        ("data contract", cohort.contract_sha256, contract.sha256),
        ("imaging pipeline", cohort.pipeline_sha256, pipeline.sha256),
        ("film size", (cohort.height, cohort.width), (pipeline.height, pipeline.width)),
        ("number of clinical features", cohort.n_features, contract.n_features),
    ):
        if found != expected:
            faults.append(f"this site's cohort was prepared by another {what}: prepare it again")
    try:
        cohort.require_others(protocol.model.others)
    except CohortError as error:
        faults.append(str(error))
    if trains and not patients:
        faults.append("no patient of this site would be trained on: prepare more patients")
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
