"""Doctor's look at what the trainer keeps: policy, cohort against contract and protocols, and the budget ahead.

Reads and changes nothing, takes no lock, needs no running trainer. Numbers of patients are rounded to tens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from client.privacy.ledger import Ledger
from client.privacy.policy import decide
from client.privacy.what_if import outlook
from client.trainer.config import SiteConfig
from client.trainer.roster import rows_by_part, split_terms
from shared_model.cohort import Cohort
from shared_model.contract import load_contract
from shared_model.doctor.check import Check, amber, green, red
from shared_model.errors import ProtocolError, StorageError
from shared_model.protocol import Protocol
from shared_model.signed_protocol import Coordinator, SignedProtocol

FEW_PATIENTS = 50  # of `train`: below, noise and divisor of a private step weigh more than the patients do
_PREPARE = "prepare the cohort again with this release: `mammofed site import`"


def read_protocol(path: Path, coordinator: Coordinator | None) -> Protocol:
    """An approved protocol; signed wherever the site has a coordinator.

    Raises:
        ProtocolError, SignatureError: as in `SignedProtocol.read`.
    """
    if coordinator is not None:
        return SignedProtocol.read(path, coordinator=coordinator, release=version("mammofed")).protocol
    protocol = Protocol.read(path)
    if protocol.release != version("mammofed"):
        raise ProtocolError(f"{path.name} is for another release than the one installed here",
                            found=protocol.release, expected=version("mammofed"),
                            remedy="install the protocol's release")  # fmt: skip
    return protocol


def policy(config: SiteConfig) -> list[Check]:
    """The site's own limits, and the split that must never change."""
    checks = [split_pinned(config)] if config.state.exists() else []
    title = "Policy"
    if config.role == "evaluator":
        return [*checks, green("policy", title, "an evaluator trains nothing, so it has no budget")]
    limits = [f"{name} at most {value:g}" for name, value in
              (("epsilon of a patient over all studies", config.epsilon_limit), ("delta", config.delta_limit))
              if value is not None]  # fmt: skip
    kinds = "only studies with differential privacy" if config.private_only else "studies without privacy too"
    said = "; ".join([kinds, *limits])
    said += f"; noise at least {config.least_noise:g}, clip at most {config.greatest_clip:g}"
    missing = [words for absent, words in (
        (config.epsilon_limit is None, "set `epsilon_limit`: without it each study spends its own, after the others"),
        (config.delta_limit is None, "set `delta_limit`"),
        (not config.private_only, "set `private_only: true` unless these data are public"),
    ) if absent]  # fmt: skip
    if missing:
        return [*checks, amber("policy", title, said, to_do="in policy.yaml, " + "; ".join(missing))]
    return [*checks, green("policy", title, said)]


def terms(config: SiteConfig, protocol: Protocol) -> list[Check]:
    """What the trainer will refuse about an approved study, before anybody asks it to train."""
    title = f"Study {protocol.study}"
    if config.role == "evaluator":
        return []
    if config.site not in {site.name for site in protocol.federation.sites}:
        return [red("terms", title, f"{config.site} has no part in it", to_do="decline it: it was approved in error")]
    decision = decide(config, protocol, len(_women(config)["train"]))
    if decision.refusals:
        lines = ", ".join(f"`{refusal.line}`" for refusal in decision.refusals)
        return [red("terms", title, "; ".join(map(str, decision.refusals)),
                    to_do=f"decline it, or change {lines} in policy.yaml")]  # fmt: skip
    changed = "".join(f"; {clamp}" for clamp in decision.clamps)
    return [green("terms", title, f"approved, and within the policy{changed}")]


def split_pinned(config: SiteConfig) -> Check:
    """What splits the women, against what the state began with: another split would train on women of `test`."""
    path = config.state / "split.json"
    if not path.exists():
        return green("split", "Split", "not used yet")
    try:
        pinned = json.loads(path.read_text())
    except ValueError:
        raise StorageError("the site's split.json is damaged", remedy="restore it from backup") from None
    if pinned != split_terms(config):
        return red("split", "Split", "salt, fractions or roster were changed after the split was used",
                   to_do="use the first salt and fractions again; they stand in split.json")  # fmt: skip
    return green("split", "Split", "as it was when the state began")


def cohort_of(config: SiteConfig, protocols: Sequence[Protocol]) -> list[Check]:
    """The prepared cohort against the installed contract and each approved protocol.

    Raises:
        CohortError: absent or damaged. ContractError: the installed contract is.
    """
    cohort, contract, title = Cohort.open(config.cohort), load_contract(), "Cohort"
    if config.role == "site" and cohort.site != config.site:
        return [red("cohort", title, f"prepared for {cohort.site}, this site is {config.site}",
                    to_do="point `cohort` in policy.yaml to this site's own")]  # fmt: skip
    if cohort.contract_sha256 != contract.sha256:
        return [red("cohort", title, f"prepared by another data contract than {contract.version}", to_do=_PREPARE)]
    wrong = [fault for protocol in protocols if (fault := misfit(cohort, protocol))]
    if wrong:
        return [red("cohort", title, "; ".join(wrong), to_do=_PREPARE)]
    splits = {name: len(rows) for name, rows in
              rows_by_part(config, cohort).items()}  # fmt: skip
    words = f"fits the data contract {contract.version}; " + ", ".join(
        f"about {_tens(count)} in {name}" for name, count in sorted(splits.items()))  # fmt: skip
    if not all(splits.values()):
        return [red("cohort", title, f"{words}: nobody in a split", to_do="prepare more patients")]
    if splits.get("train", FEW_PATIENTS) < FEW_PATIENTS:
        return [amber("cohort", title, words, to_do=f"{FEW_PATIENTS} women in `train` are a beginning: prepare more")]
    return [green("cohort", title, words)]


def misfit(cohort: Cohort, protocol: Protocol) -> str:
    """In what a cohort differs from what a protocol asks for; "" when it fits (as the trainer itself checks)."""
    pipeline = protocol.pipeline
    pairs = (
        ("data contract", cohort.contract_sha256, protocol.contract.sha256),
        ("imaging pipeline", cohort.pipeline_sha256, pipeline.sha256),
        ("film size", (cohort.height, cohort.width), (pipeline.height, pipeline.width)),
        ("number of clinical features", cohort.n_features, protocol.contract.n_features),
    )
    wrong = [what for what, found, expected in pairs if found != expected]
    return f"another {' and '.join(wrong)} than study {protocol.study} asks for" if wrong else ""


def budget_of(config: SiteConfig, protocol: Protocol) -> list[Check]:
    """What an approved study will still cost: the ledger as it is, and the rounds that are not in it yet."""
    if config.role == "evaluator" or not protocol.private:
        return []
    women = _women(config)["train"]
    cost = outlook(Ledger(config.state / "ledger.json"), protocol, decide(config, protocol, len(women)), "train",
                   epsilon_limit=config.epsilon_limit, pseudonyms=women)  # fmt: skip
    return [budget(protocol.study, now=cost.before, end=cost.after, limit=cost.limit)]


def _women(config: SiteConfig) -> dict[str, list[str]]:
    """Pseudonyms by split.

    Raises:
        CohortError: the cohort is absent or damaged.
    """
    cohort = Cohort.open(config.cohort)
    splits = rows_by_part(config, cohort)
    return {name: [cohort.pseudonyms[row] for row in rows] for name, rows in splits.items()}


def budget(study: str, *, now: float, end: float, limit: float) -> Check:
    """Epsilon spent now and predicted at the study's end, against the least of the limits."""
    title = "Privacy budget"
    words = f"{study}: epsilon {now:.2f} spent, {end:.2f} predicted at its end, {limit:.2f} allowed"
    to_do = "decide on a greater `epsilon_limit`, or tell the coordinator that this site will sit rounds out"
    if now >= limit and end > now:
        return red("budget", title, f"{words}: no round can be afforded", to_do=to_do)
    if end > limit:
        return amber("budget", title, f"{words}: the last rounds cannot be afforded", to_do=to_do)
    return green("budget", title, words)


def _tens(count: int) -> int:
    return round(count, -1)
