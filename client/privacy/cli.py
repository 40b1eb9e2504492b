"""`mammofed site ledger show | verify | what-if` and `site policy`: thin; mounted by `client.deploy.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from client.deploy.home import SiteHome
    from client.privacy.ledger import Ledger
    from shared_model.protocol import Protocol

HOME = click.argument("home", type=click.Path(file_okay=False, path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="For machines.")
DELTA = click.option("--delta", type=click.FloatRange(0, 1, min_open=True, max_open=True),
                     help="At which epsilon is told (default: the policy's delta_limit).")  # fmt: skip


@click.group()
def ledger() -> None:
    """What this site's patients have spent: the record, its check, and what a study would cost.

    Start with:  mammofed site ledger show site
    """


@ledger.command()
@HOME
@click.option("--study", help="Entries of this study only; what is spent stays that of all.")
@DELTA
@JSON
def show(home: Path, study: str | None, delta: float | None, as_json: bool) -> None:
    """Epsilon spent and left by group of patients and by study, and every entry.

    Example:  mammofed site ledger show site --study density-2027
    """
    from client.deploy.policy_file import Policy
    from client.privacy.shown import print_ledger, shown

    there, chosen = _open(home), delta or _delta(home)
    print_ledger(shown(_ledger(there), Policy.read(there.policy_file), delta=chosen, study=study), as_json=as_json)


@ledger.command()
@HOME
@DELTA
def verify(home: Path, delta: float | None) -> None:
    """Check the chain, its anchor, the audit log's record of it, and epsilon by an independent accountant.

    Exit code 70: the ledger was changed or is an older copy. 71: the audit log. 40: the accountants disagree.

    Example:  mammofed site ledger verify site
    """
    from client.privacy.shown import print_verified
    from client.privacy.verify import verify_ledger

    there = _open(home)
    found = verify_ledger(_ledger(there), delta=delta or _delta(home), audit=there.state / "audit.jsonl")
    print_verified(found)
    found.check()


@ledger.command(name="what-if")
@HOME
@click.argument("study")
@JSON
def what_if(home: Path, study: str, as_json: bool) -> None:
    """What STUDY (a proposed study, or the file of a protocol) would cost these patients. Nothing is written.

    Example:  mammofed site ledger what-if site density-2027
    """
    from client.deploy.policy_file import Policy
    from client.privacy.policy import decide
    from client.privacy.shown import print_outlook
    from client.privacy.what_if import outlook
    from client.trainer.consent import women_of

    there = _open(home)
    protocol, policy, women = _protocol(there, study), Policy.read(there.policy_file), women_of(there)
    decision, record = decide(policy, protocol, len(women["train"])), _ledger(there)
    costs = [outlook(record, protocol, decision, group, epsilon_limit=policy.epsilon_limit,
                     pseudonyms=women["train" if group == "train" else "test"])
             for group in ("train", "metrics")]  # fmt: skip
    print_outlook(protocol, decision, costs, as_json=as_json)


@click.command()
@HOME
@click.option("--check", is_flag=True, help="Say nothing, and end with code 10 unless every line is there and valid.")
def policy(home: Path, check: bool) -> None:
    """This site's limits: each line, what it means, and what is left open or missing.

    Example:  mammofed site policy site
    """
    from client.deploy.policy_file import Policy
    from client.privacy.shown import print_policy

    path = _open(home).policy_file
    if not check:
        print_policy(path)
    Policy.read(path)


def _open(home: Path) -> SiteHome:
    from client.deploy.home import SiteHome

    return SiteHome.open(home.resolve())


def _ledger(home: SiteHome) -> Ledger:
    from client.privacy.ledger import Ledger

    return Ledger(home.state / "ledger.json")


def _delta(home: Path) -> float:
    from client.deploy.policy_file import Policy
    from client.privacy.ledger import DELTA as USUAL

    return Policy.read(_open(home).policy_file).delta_limit or USUAL


def _protocol(home: SiteHome, study: str) -> Protocol:
    """A proposed study by name, or the protocol in a file, signed or not: nothing is trained for it here."""
    from client.trainer.consent import proposals
    from client.trainer.site import release
    from shared_model.errors import ConfigError
    from shared_model.protocol import Protocol

    if Path(study).is_file():
        return Protocol.read(Path(study))
    found = proposals(home, release=release())
    if study not in found:
        raise ConfigError(f"no study {study} is proposed to this site, and it is no file",
                          found=", ".join(found) or "none", expected="a study's name or a protocol's file",
                          remedy=f"`mammofed site review {home.folder}` shows what is proposed")  # fmt: skip
    return found[study].protocol


COMMANDS = (ledger, policy)
