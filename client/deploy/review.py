"""How `site review` shows a proposed study to the person who decides; figures come from `client.trainer.consent`."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.deploy.home import SiteHome
from client.deploy.inbox import Inbox
from client.deploy.peer_keys import peer_keys, published, read_published
from shared_model.fingerprint import six_words
from shared_model.protocol import Protocol
from shared_model.signed_protocol import SignedProtocol
from shared_model.signing import VerifyKey
from shared_model.strategies import SECURE_SUM_MATRIX

if TYPE_CHECKING:
    from client.trainer.consent import Review


def show_review(home: SiteHome, signed: SignedProtocol, found: Review, console: Console | None = None) -> None:
    """Print one study."""
    protocol, there = found.protocol, console or Console()
    trains = home.identity().settings.role.value == "site"
    table = Table(show_header=False, title=f"{protocol.study} ({found.standing})", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("Proposed by", f"{signed.coordinator.name}, key {signed.coordinator.key[:16]}, "
                  f"protocol {signed.sha256[:16]}")  # fmt: skip
    if protocol.exploration is not None:
        _add_counting(table, protocol)
    else:
        _add_training(table, found)
    done = "are held out" if not trains else "are counted" if protocol.exploration is not None else "are trained on"
    table.add_row("On your patients", f"{found.patients} women {done}")
    for words in found.leaves:
        table.add_row("Leaves the building", words)
    for words in found.apart:
        table.add_row("With an earlier sum", f"[red]{escape(words)}[/red]")
    if found.epsilon_after is not None:
        table.add_row("Costs each patient", f"epsilon {found.epsilon_before or 0:.2f} so far, "
                      f"{found.epsilon_after:.2f} after it, of {_limit(found.epsilon_limit)} "
                      f"(delta {protocol.privacy.delta:g}, add or remove one patient, PRV accountant, "
                      "noise added at this site)")  # fmt: skip
    elif trains:
        what = "the sum is exact" if protocol.exploration is not None else "nothing bounds what the weights tell"
        table.add_row("Costs each patient", f"[red]no differential privacy: {what}[/red]")
    others = [site.name for site in protocol.federation.sites]
    table.add_row("Sites", ", ".join(others))
    for site, words in sorted(_fingerprints(home).items()):
        table.add_row(f"  node key of {site}", words)
    _add_trainer_keys(table, home, protocol)
    for words in found.changes:
        table.add_row("This site changes", f"[yellow]{escape(words)}[/yellow] (its policy; charged as it is used)")
    for words in found.faults:
        table.add_row("[red]The trainer would refuse[/red]", escape(words))
    there.print(table)


def _add_training(table: Table, found: Review) -> None:
    protocol = found.protocol
    made_of = " and ".join(("films", "the clinical table", *protocol.model.others))
    table.add_row("What is trained", f"a {protocol.model.size} {protocol.model.fusion}-fusion model of {made_of}, "
                  f"{found.parameters:,} weights, begun from {protocol.initial_weights.origin} ones")  # fmt: skip
    table.add_row("How", f"{protocol.rounds} rounds, {protocol.federation.strategy}, "
                  f"{len(protocol.federation.sites)} sites, quorum {protocol.federation.quorum}, "
                  f"a deadline of {protocol.federation.deadline_s:g} s a round")  # fmt: skip


def _add_counting(table: Table, protocol: Protocol) -> None:
    table.add_row("What is trained", "nothing: it is an exploration, which counts women once, before a study")
    table.add_row("How", f"one masked sum over {len(protocol.federation.sites)} sites, quorum "
                  f"{protocol.federation.quorum}, a deadline of {protocol.federation.deadline_s:g} s")  # fmt: skip


def _add_trainer_keys(table: Table, home: SiteHome, protocol: Protocol) -> None:
    """For a secure sum: the words that the sites' people compare with each other, and what the sum excludes."""
    if not protocol.summed or home.identity().settings.role.value != "site":
        return
    excluded = ", ".join(name for name, why in SECURE_SUM_MATRIX.items() if why)
    what = "counts" if protocol.exploration is not None else "updates"
    table.add_row("Secure sum", f"{what} reach the coordinator as their sum over three sites or more. It excludes "
                  f"rules that look at single updates ({excluded}), and finding out who sent false values")  # fmt: skip
    own = read_published(published(home))
    words = f"{VerifyKey.from_hex(own).fingerprint} (read it to the others)" if own else "made by `mammofed site join`"
    table.add_row("  this trainer's key", words)
    for peer in peer_keys(home, protocol):
        words = peer.key.fingerprint if peer.key else "not known yet: that site has not joined"
        colour = {"confirmed": "green", "changed": "red"}.get(peer.standing, "yellow")
        said = {"confirmed": "compared before", "changed": "ANOTHER KEY THAN WAS COMPARED BEFORE",
                "new": "compare with its people"}.get(peer.standing, "")  # fmt: skip
        table.add_row(f"  trainer key of {peer.site}", f"{words} [{colour}]{said}[/{colour}]")


def _limit(limit: float | None) -> str:
    return "no limit of this site's own" if limit is None else f"this site's limit {limit:g}"


def _fingerprints(home: SiteHome) -> dict[str, str]:
    """Six words for each other member's node key, worked out here from the key itself."""
    inbox = Inbox(home.courier, site=home.identity().settings.site, release=version("mammofed"))
    return {member.site: six_words(member.node) for member in inbox.members()}
