"""A study goes on without one site's contribution: from the last checkpoint before it, as a new study. For `rollback`.

Nothing can be taken out of weights that it went into. What can be done is to throw away the rounds since: the new study
begins with the weights of the last round that the site had no part in, under a new protocol without it, which its other
sites review and approve as any other, for it costs them privacy. The old study ends; its journal and the audit log
say what was done, and its models are what they were: covered by the epsilon that was promised for them.

What a new protocol cannot carry on: the server's momentum (fedavgm, fedadam, fedyogi) and SCAFFOLD's variates, which
begin anew, and the decay of the learning rate, which runs over the new study's rounds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.deploy.home import CoordinatorHome
from server.deploy.studies import INITIAL, StudyFolder, Wanted, Wish, find_study
from server.rounds.checkpoint import read_checkpoint, write_safetensors
from server.rounds.events import Event
from server.rounds.follow import contributions
from server.rounds.journal import Journal
from server.rounds.loop import alone
from shared_model.errors import ConfigError, ProtocolError
from shared_model.messages import Arrays, weights_sha256
from shared_model.private_files import make_private_folder
from shared_model.proposal import protocol_yaml
from shared_model.protocol import PhaseTerms, Protocol

LONGEST_NAME = 63


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """A study to go on with. kept: last round without the site, 0 for the initial weights. lost: rounds closed since,
    which the other sites have paid for. protocol: the new one. weights: what it begins with."""

    kept: int
    lost: int
    protocol: Protocol
    weights: Arrays


def plan_rollback(
    run_dir: Path, *, without: str, name: str | None = None, rounds: int | None = None
) -> Rollback:
    """Work out how a study would go on without a site; writes nothing.

    Args:
        run_dir: of the study.
        without: name of the site.
        name: of the new study; None: the old one's with the site's.
        rounds: of the new study. None: with privacy as many as the old one had left, so that the other sites stay
            within the epsilon that it promised (if its phases have one noise); without privacy all that were to follow.

    Raises:
        ConfigError: the site has no part in the study, or gave nothing to it.
        ProtocolError: no protocol can be made of what is left: no rounds, or too few sites for the strategy.
        StorageError: the checkpoint is absent or damaged.
    """
    protocol = Protocol.read(run_dir / "protocol.json")
    protocol.federation.site(without)
    given = contributions(run_dir / "journal.sqlite")
    mine = sorted(number for number, sites in given.items() if without in sites)
    if not mine:
        raise ConfigError(f"{without} gave to no closed round of {protocol.study}",
                          remedy="nothing needs to be thrown away: `mammofed server revoke` shuts it out")  # fmt: skip
    kept, closed = mine[0] - 1, max(given)
    checkpoint = read_checkpoint(run_dir, kept, protocol_sha256=protocol.sha256)
    wanted = rounds or (protocol.rounds - closed if protocol.private else protocol.rounds - kept)
    if wanted < 1:
        raise ProtocolError(
            f"all rounds of {protocol.study} are done, and their epsilon is spent", found=f"{closed} of them",
            remedy="say --rounds; the other sites decide whether they can afford them",
        )  # fmt: skip
    return Rollback(
        kept=kept, lost=closed - kept, weights=checkpoint.weights,
        protocol=_without(protocol, without, kept=kept, rounds=wanted, weights=checkpoint.weights,
                          name=name or f"{protocol.study}-without-{without}"[:LONGEST_NAME]),
    )  # fmt: skip


def roll_back(home: CoordinatorHome, study_name: str, plan: Rollback, folder: Path, *, without: str) -> None:
    """End the old study, say so in its journal and in the audit log, and write the new one's proposal into `folder`.

    The proposal is written first: a crash leaves a proposal that nobody has signed.

    Raises:
        ConfigError: the study is running, or `folder` is not empty. StorageError: the disk refuses.
    """
    study = find_study(home, study_name)
    if study.wanted().wish is Wish.RUNNING or study.busy():
        raise ConfigError(f"{study_name} is running", remedy=f"`mammofed server stop {home.folder} {study_name}` first")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", expected="a new folder")
    make_private_folder(folder)
    write_safetensors(folder / INITIAL, plan.weights, "weights", {"study": study_name, "round": plan.kept})
    (folder / "protocol.yaml").write_text(protocol_yaml(plan.protocol), encoding="utf-8")
    words = (f"goes on as {plan.protocol.study} from round {plan.kept}, without {without}; {plan.lost} closed rounds "
             "are thrown away")  # fmt: skip
    _note(study, words, site=without)
    home.record("study_rolled_back", study=study_name, without=without, kept=plan.kept, lost=plan.lost,
                goes_on_as=plan.protocol.study, protocol_sha256=plan.protocol.sha256)  # fmt: skip
    study.want(Wanted(wish=Wish.ENDED, reason=words))


def _note(study: StudyFolder, words: str, *, site: str) -> None:
    with alone(study.path), Journal(study.journal, lambda _: None) as journal, journal.entry():
        journal.event(Event(time=time.time(), kind="alarm", severity="warning", code="rolled_back", site=site,
                            text=words))  # fmt: skip


def _without(
    protocol: Protocol, without: str, *, kept: int, rounds: int, weights: Arrays, name: str
) -> Protocol:
    """The new protocol: the site's line is out, the phases are those that follow round `kept`, cut to `rounds`."""
    terms = protocol.model_dump(mode="json")
    sites = [site for site in terms["federation"]["sites"] if site["name"] != without]
    if not sites:
        raise ProtocolError(f"{without} is the only site of {protocol.study}", expected="others to go on with")
    recipe = f"round {kept} of {protocol.study} ({protocol.sha256[:16]}), before {without} gave to it"
    origin = "study" if kept else protocol.initial_weights.origin
    terms["study"] = name
    terms["initial_weights"] = {"sha256": weights_sha256(weights), "origin": origin, "recipe": recipe[:200]}
    terms["training"]["phases"] = [phase.model_dump(mode="json") for phase in _phases(protocol, kept, rounds)]
    terms["federation"] |= {
        "sites": sites, "sites_per_round": min(protocol.federation.sites_per_round, len(sites)),
        "quorum": min(protocol.federation.quorum, len(sites)),
    }  # fmt: skip
    return Protocol.create(terms, source=f"{protocol.study} without {without}")


def _phases(protocol: Protocol, kept: int, rounds: int) -> Sequence[PhaseTerms]:
    """The phases after round `kept`, `rounds` of them in all, each in proportion; none is left out while it can be."""
    left, last = [], 0
    for phase in protocol.training.phases:
        last += phase.rounds
        if last > kept:
            left.append(phase.model_copy(update={"rounds": min(phase.rounds, last - kept)}))
    if not left:  # everything was done; more of the last phase is asked for
        left = [protocol.training.phases[-1]]
    left = left[-rounds:]
    spare = rounds - len(left)
    total = sum(phase.rounds for phase in left)
    shares = [spare * phase.rounds / total for phase in left]
    whole = [int(share) for share in shares]
    order = sorted(range(len(left)), key=lambda index: (whole[index] - shares[index], index))
    for index in order[: spare - sum(whole)]:
        whole[index] += 1
    return [phase.model_copy(update={"rounds": 1 + extra}) for phase, extra in zip(left, whole, strict=True)]
