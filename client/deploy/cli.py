"""`mammofed site init | status | review | approve | decline | join | leave`: a site's part in a consortium."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from client.deploy.doctor_cli import doctor
from client.deploy.withdraw_cli import withdraw
from client.privacy.cli import COMMANDS as PRIVACY
from client.privacy.egress_cli import egress
from client.watch.cli import watch

if TYPE_CHECKING:
    from client.deploy.home import SiteHome
    from client.deploy.proxy import Proxy
    from shared_model.signed_protocol import SignedProtocol

HOME = click.argument("home", type=click.Path(file_okay=False, path_type=Path))
STUDY = click.argument("study")
PROXY = click.option("--proxy", envvar="MAMMOFED_PROXY",
                     help="http://[user:password@]host:port; better as MAMMOFED_PROXY.")  # fmt: skip


@click.command()
@HOME
@click.option("--invite", required=True, help="The coordinator's invitation, or a file that holds it.")
@click.option("--server", required=True, metavar="HOST:PORT", help="The coordinator's door for enrolled sites.")
@click.option("--enrol-port", type=int, help="Its door for invited sites (default: the port after that).")
@click.option("--cohort", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="The prepared cohort (`mammofed site import` makes one).")  # fmt: skip
@click.option("--role", type=click.Choice(["site", "evaluator"]), default="site", show_default=True,
              help="What the invitation is for; another one is refused.")  # fmt: skip
@click.option("--again", is_flag=True, help="Put the old keys aside: they have run out or were revoked.")
def init(home: Path, invite: str, server: str, enrol_port: int | None, cohort: Path, role: str, again: bool) -> None:
    """Make this site's keys and its policy in HOME. Private keys are born here and never leave.

    Example:  mammofed site init site --invite mfi1.north.site... --server fl.example.org:8443 --cohort north/cohort
    """
    from client.deploy.home import SiteHome, check_cohort
    from client.deploy.identity import SiteIdentity
    from shared_model.enrolment import MAX_DOCUMENT_BYTES, Invite
    from shared_model.errors import ConfigError
    from shared_model.fingerprint import six_words

    path = Path(invite)
    text = invite
    if len(invite) < 200 and path.is_file():
        with path.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(MAX_DOCUMENT_BYTES)
    invitation = Invite.parse(text)
    if invitation.member.role.value != role:
        raise ConfigError("the invitation is for another role", found=invitation.member.role.value, expected=role,
                          remedy=f"--role {invitation.member.role.value}, if that is what this machine is")  # fmt: skip
    host, _, port = server.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ConfigError("--server: no address", found=server, expected="HOST:PORT")
    check_cohort(cohort, invitation.member)
    made = SiteHome.create(home.resolve(), cohort=cohort, role=invitation.member.role)
    identity = SiteIdentity.begin(made.folder / "identity", invitation, host=host.strip("[]"), port=int(port),
                                  enrol_port=enrol_port, again=again)  # fmt: skip
    click.echo(f"{invitation.member.site}: keys are made in {made.folder}. When the coordinator calls, read to it:")
    for use, words in identity.words(six_words).items():
        click.echo(f"  {use:12} {words}")
    click.echo(f"Policy       {made.policy_file} (read it: what this hospital allows)")
    begin = "start it again" if again else "waits for the confirmation, then takes part"
    click.echo(f"Next         `mammofed site join {home}`: {begin}")


@click.command()
@HOME
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(home: Path, as_json: bool) -> None:
    """This site alone: certificate, line and last contact, studies and what was decided, its own rounds, what they cost
    and what left.

    Example:  mammofed site status site
    """
    from client.deploy.overview import show, status_of

    show(status_of(_open(home)), as_json=as_json)


@click.command()
@HOME
@click.argument("study", required=False)
def review(home: Path, study: str | None) -> None:
    """A proposed STUDY in words: what is trained, on how many patients, what leaves, what it costs.

    Example:  mammofed site review site density-2027
    """
    from client.deploy.review import show_review
    from client.trainer.consent import proposals, refused
    from client.trainer.consent import review as work_out
    from client.trainer.site import release

    there = _open(home)
    found = proposals(there, release=release())
    for name, why in refused(there, release=release()).items():
        click.secho(f"{name}: {why}", fg="red", err=True)
    if study is not None:
        found = {study: _proposal(there, study)}
    if not found:
        click.echo("Nothing is proposed to this site, or nothing came yet: it takes half a minute.")
        click.echo("Next  `mammofed site join` keeps asking the coordinator")
    for name, signed in found.items():
        show_review(there, signed, work_out(there, signed))
        click.echo(f"Next  `mammofed site approve {home} {name}`, or `decline`")


@click.command()
@HOME
@STUDY
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--peers-compared", is_flag=True,
              help="The six words of every trainer key that `review` shows were compared with that site's people.")
def approve(home: Path, study: str, yes: bool, peers_compared: bool) -> None:
    """Take part in STUDY as it was proposed, to the letter.

    Example:  mammofed site approve site density-2027
    """
    from client.deploy.peer_keys import compare_peers, peer_keys
    from client.deploy.review import show_review
    from client.trainer.consent import approve as approve_study
    from client.trainer.consent import refusals
    from client.trainer.consent import review as work_out

    there = _open(home)
    signed = _proposal(there, study)
    if there.trusted_coordinator() is None:
        click.echo(f"First approval here, of coordinator {signed.coordinator.name}; compare its key over the phone:")
        click.echo(f"  {signed.coordinator.verify_key.fingerprint}")
    faults = refusals(there, signed)
    for words in faults:
        click.secho(f"As things are, the trainer would refuse it: {words}", fg="red", err=True)
    if not yes:
        show_review(there, signed, work_out(there, signed))  # what is approved is what is read here
        click.confirm(f"Approve {study} ({signed.sha256[:16]})?", abort=True)
    compared = compare_peers(peer_keys(there, signed.protocol), told=peers_compared, ask=not yes)
    approve_study(there, signed, compared=compared)
    click.echo(f"{study} is approved; the trainer serves it {'once that is put right' if faults else 'from now on'}.")
    click.echo(f"Next  `mammofed site status {home}`; `decline` takes it back, also later")


@click.command()
@HOME
@STUDY
def decline(home: Path, study: str) -> None:
    """Say no to STUDY, also after it was approved: nothing more is trained for it.

    Example:  mammofed site decline site density-2027
    """
    from client.trainer.consent import decline as decline_study
    from client.trainer.site import release

    there = _open(home)
    if not decline_study(there, study, release=release()):
        _proposal(there, study)  # raises
    click.echo(f"{study} is declined; nothing is trained for it.")
    click.echo(f"Next  `mammofed site approve {home} {study}`, should you change your mind")


@click.command()
@HOME
@click.option("--only", type=click.Choice(["courier", "trainer"]), help="One role, for a user of its own.")
@PROXY
@click.option("--group", help="Group that reaches the trainer's socket, where the courier is another user.")
def join(home: Path, only: str | None, proxy: str | None, group: str | None) -> None:
    """Run this site's trainer and courier in the foreground. A service for systemd; Ctrl-C ends it.

    Example:  mammofed site join site
    """
    from client.deploy.join import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run(_open(home), only=only, proxy=_proxy(proxy), group=group)


@click.command()
@HOME
@click.option("--reason", default="", help="For the coordinator.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@PROXY
def leave(home: Path, reason: str, yes: bool, proxy: str | None) -> None:
    """Take no part any more: the coordinator shuts this site's keys out. Ledger and audit logs stay here.

    Example:  mammofed site leave site --reason "the project has ended"
    """
    from client.deploy.control import ControlLine
    from shared_model.control import MAX_WORDS, LeaveRequest

    there = _open(home)
    if not yes:
        click.confirm("Leave the consortium? To come back takes a new invitation and new keys.", abort=True)
    with ControlLine(there.identity(), proxy=_proxy(proxy)) as line:
        line.client.leave(LeaveRequest(reason=reason[:MAX_WORDS]))
    click.echo("The coordinator has it on record. What this site gave to closed rounds stays in their models.")
    click.echo(f"Next  stop the services; keep {there.trainer / 'state'}: the ledger is the memory of what was spent")


def _proxy(url: str | None) -> Proxy | None:
    from client.deploy.proxy import Proxy

    return Proxy.parse(url) if url else None


def _open(home: Path) -> SiteHome:
    from client.deploy.home import SiteHome

    return SiteHome.open(home.resolve())


def _proposal(home: SiteHome, study: str) -> SignedProtocol:
    from client.trainer.consent import proposals
    from client.trainer.site import release
    from shared_model.errors import ConfigError

    found = proposals(home, release=release())
    if study not in found:
        raise ConfigError(f"no study {study} is proposed to this site", found=", ".join(found) or "none",
                          remedy="`mammofed site review` shows what is; what is new comes within a minute")  # fmt: skip
    return found[study]


COMMANDS = (init, status, review, approve, decline, join, leave, doctor, egress, watch, withdraw, *PRIVACY)
