"""The coordinator's commands: `mammofed server ...` and `mammofed report`; thin, the work is in `server/deploy`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from server.deploy.explore_cli import explore
from server.deploy.nginx_cli import nginx
from server.deploy.rollback_cli import influence, rollback
from server.doctor_cli import doctor

if TYPE_CHECKING:
    from server.deploy.home import CoordinatorHome

HOME = click.argument("home", type=click.Path(file_okay=False, path_type=Path))


@click.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(run_dir: Path) -> None:
    """Write summary.json and report.html of RUN_DIR again from its journal; of a comparison or a design, from its
    evidence.json or design.json.

    Example:  mammofed report runs/quick-20261122-120000
    """
    from server.reporting import write_evidence_report, write_report
    from server.reporting.design_page import DESIGN_NAME, write_design_report
    from server.reporting.evidence_page import EVIDENCE_NAME
    from server.rounds.summary import write_summary

    if (run_dir / EVIDENCE_NAME).exists():
        click.echo(f"Report: {write_evidence_report(run_dir)}")
        return
    if (run_dir / DESIGN_NAME).exists():
        click.echo(f"Report: {write_design_report(run_dir)}")
        return
    write_summary(run_dir)
    click.echo(f"Report: {write_report(run_dir)}")


@click.group()
def server() -> None:
    """What a consortium's coordinator runs: invite sites, propose a study, run it to its end.

    Start with:  mammofed server init coordinator --name hub --host fl.example.org
    """


def with_page(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that brings the live page: `--monitor`, and what `mammofed monitor` calls the same."""
    shown = click.option("--monitor", is_flag=True, help="Then serve the live page on 127.0.0.1, until Ctrl-C: the "
                         "study goes on without it.")  # fmt: skip
    port = click.option("--port", default=8787, show_default=True, help="With --monitor: of the page; 0 takes any that "
                        "is free.")  # fmt: skip
    silent = click.option("--no-open", is_flag=True, help="With --monitor: do not open a browser.")
    return shown(port(silent(command)))


def _show_page(ctx: click.Context, home: Path, study: str, *, port: int, no_open: bool) -> None:
    from server.monitor.cli import monitor

    ctx.invoke(monitor, target=str(home), study=study, port=port, no_open=no_open)


@server.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def release(run_dir: Path, folder: Path) -> None:
    """Write the model of a finished study, with its thresholds and its test, into FOLDER, to be handed to the sites.

    Example:  mammofed server release coordinator/studies/density-2027 density-2027-model
    """
    from server.release import write_release

    written = write_release(run_dir, folder)
    made = written.release
    click.echo(f"Model       {made.model_sha256[:16]} of round {made.round}, study {made.study}")
    click.echo(f"Passport    {written.vouched.words}")
    click.echo(f"Next        at a site: `mammofed site predict site.yaml --model {folder} --out results`")


@server.command()
@HOME
@click.option("--name", required=True, help="In signatures: lower-case letters, digits, `-` and `_`.")
@click.option("--title", help="As people read it (default: the name).")
@click.option("--host", "hosts", multiple=True, required=True,
              help="Name or address that sites connect to; may be given again.")  # fmt: skip
@click.option("--listen", default="0.0.0.0", show_default=True, help="Address of the doors.")  # noqa: S104
@click.option("--port", default=8443, show_default=True, help="Door for enrolled sites (mutual TLS).")
@click.option("--enrol-port", default=8444, show_default=True, help="Door for invited sites.")
@click.option("--link-port", default=18000, show_default=True, help="Of SuperLink, on this machine alone.")
def init(
    home: Path, name: str, title: str | None, hosts: tuple[str, ...], listen: str, port: int, enrol_port: int,
    link_port: int,
) -> None:  # fmt: skip
    """Make a coordinator in HOME: certificate authority, signing key, audit log.

    Example:  mammofed server init coordinator --name hub --host fl.example.org
    """
    from pydantic import ValidationError

    from server.deploy.home import CoordinatorFile, CoordinatorHome
    from shared_model.errors import ConfigError

    try:
        settings = CoordinatorFile(name=name, title=title or name, hosts=hosts, listen=listen, port=port,
                                   enrol_port=enrol_port, link_port=link_port)  # fmt: skip
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'ports'}: {e['msg'].removeprefix('Value error, ')}"
                           for e in error.errors(include_url=False))  # fmt: skip
        raise ConfigError(f"not a coordinator's settings: {faults}") from None
    made = CoordinatorHome.create(home, settings)
    click.echo(f"Home         {made.folder} (back up signing.key and ca/, offline and encrypted)")
    click.echo(f"Signing key  {made.signing_key.public.fingerprint}")
    click.echo(f"Next         `mammofed server serve {home}` (a service of its own), then "
               f"`mammofed server invite {home} SITE`")  # fmt: skip


@server.command()
@HOME
@click.argument("site")
@click.option("--role", type=click.Choice(["site", "evaluator"]), default="site", show_default=True)
@click.option("--hours", default=72.0, show_default=True, help="How long the invitation is good.")
def invite(home: Path, site: str, role: str, hours: float) -> None:
    """Print an invitation for SITE: good once, for some hours; send it over a channel of its own.

    Example:  mammofed server invite coordinator north
    """
    from shared_model.certificates import Member, Role

    there = _open(home)
    with there.enrolment() as enrolment:
        invitation = enrolment.invite(Member(site, Role(role)), hours=hours)
    there.record("invited", site=site, role=role, hours=hours)
    click.echo(invitation.text)
    click.echo(f"For {site} ({role}), good once and for {hours:g} hours. The site runs:", err=True)
    click.echo(f"  {_site_init(there, role)}", err=True)
    click.echo(f"Next  when {site} calls: `mammofed server enrol {home} {site}`", err=True)


@server.command()
@HOME
@click.argument("site", required=False)
@click.option("--certificate", "tls", help="The six words that the site reads for its certificate's key.")
@click.option("--node", help="The six words that the site reads for its node key.")
def enrol(home: Path, site: str | None, tls: str | None, node: str | None) -> None:
    """Confirm SITE after it has read its words over the phone; without SITE: who waits.

    Example:  mammofed server enrol coordinator north
    """
    there = _open(home)
    with there.enrolment() as enrolment:
        if site is None:
            for pending in enrolment.pending():
                click.echo(f"{pending.member.site:24} {pending.member.role.value}")
            if not enrolment.pending():
                click.echo("Nobody waits for a confirmation.")
            else:
                click.echo(f"Next  call them: `mammofed server enrol {home} SITE`")
            return
        if tls is None or node is None:
            click.echo(f"Call {site} on a number that you know. Type what `mammofed site init` shows there:")
        tls = tls or click.prompt("Words of the certificate's key")
        node = node or click.prompt("Words of the node key")
        enrolment.confirm(site, {"certificate": tls, "node": node})
    there.record("enrolled", site=site)
    click.echo(f"{site} is enrolled; its courier gets its certificate by itself.")
    click.echo(f"Next  `mammofed server status {home}` shows it once it is here; then `mammofed server propose`")


@server.command()
@HOME
@click.argument("site")
@click.option("--reason", default="", help="For the record and for the site.")
def revoke(home: Path, site: str, reason: str) -> None:
    """Shut SITE out at once: live connections end, new ones are refused.

    Example:  mammofed server revoke coordinator north --reason "keys were lost"
    """
    there = _open(home)
    with there.enrolment() as enrolment:
        enrolment.revoke(site, reason=reason)
    there.record("revoked", site=site, reason=reason[:300])
    click.echo(f"{site} is shut out.")
    click.echo(f"Next  to let it in again, under new keys: `mammofed server invite {home} {site}`")


@server.command()
@HOME
@click.argument("protocol", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The initial weights that the protocol names (`initial.safetensors`).")  # fmt: skip
def propose(home: Path, protocol: Path, weights: Path) -> None:
    """Sign PROTOCOL and show it to its sites; `mammofed simulate protocol` writes one.

    Example:  mammofed server propose coordinator study/protocol.yaml --weights study/initial.safetensors
    """
    from server.deploy.studies import propose as propose_study
    from shared_model.proposal import read_protocol

    study = propose_study(_open(home), read_protocol(protocol), weights)
    click.echo(f"{study.name} is proposed; each site reviews and approves it.")
    click.echo(f"Next  `mammofed server start {home} {study.name}` when `mammofed server status {home}` shows who did")


@server.command()
@HOME
@click.argument("study")
@with_page
@click.pass_context
def start(ctx: click.Context, home: Path, study: str, monitor: bool, port: int, no_open: bool) -> None:
    """Begin STUDY; the daemon runs it, through crashes, to its end.

    Example:  mammofed server start coordinator density-2027 --monitor
    """
    from server.deploy.studies import start as start_study

    found = start_study(_open(home), study, again=False)
    click.echo(f"{found.name} begins. Watch  `mammofed monitor {home}`, or `mammofed server status {home}`")
    if monitor:
        _show_page(ctx, home, found.name, port=port, no_open=no_open)


@server.command()
@HOME
@click.argument("study")
@with_page
@click.pass_context
def resume(ctx: click.Context, home: Path, study: str, monitor: bool, port: int, no_open: bool) -> None:
    """Go on with a STUDY that was stopped or had no quorum, from its last closed round.

    Example:  mammofed server resume coordinator density-2027
    """
    from server.deploy.studies import start as start_study

    found = start_study(_open(home), study, again=True)
    click.echo(f"{found.name} goes on. Watch  `mammofed monitor {home}`, or `mammofed server status {home}`")
    if monitor:
        _show_page(ctx, home, found.name, port=port, no_open=no_open)


@server.command()
@HOME
@click.argument("study")
def stop(home: Path, study: str) -> None:
    """Stop STUDY after the round that is running.

    Example:  mammofed server stop coordinator density-2027
    """
    from server.deploy.studies import stop as stop_study

    found = stop_study(_open(home), study)
    click.echo(f"{found.name} stops after this round. Next  `mammofed server resume {home} {study}` goes on with it")


@server.command()
@HOME
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(home: Path, as_json: bool) -> None:
    """Who is enrolled and here, what runs, and how far each study is.

    Example:  mammofed server status coordinator
    """
    from server.deploy.status import show, status_of

    show(status_of(_open(home)), as_json=as_json)


@server.command()
@HOME
def serve(home: Path) -> None:
    """Run the coordinator in the foreground: doors, SuperLink, studies. A service for systemd; Ctrl-C ends it.

    Example:  mammofed server serve coordinator
    """
    from server.deploy.daemon import run

    click.echo(f"Watch  `mammofed monitor {home}` shows its studies live, in another terminal or over SSH")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run(_open(home))


@server.command()
@click.argument("passport", type=click.Path(exists=True, path_type=Path))
@click.option("--study", "name", required=True, help="Name of the next study.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Folder for protocol.yaml and initial.safetensors.")  # fmt: skip
@click.option("--margin", default=0.02, show_default=True, help="Of AUC, on all held-out women.")
@click.option("--group-margin", default=0.05, show_default=True, help="Of AUC, at each site and in each subgroup.")
@click.option("--least-positives", default=20, show_default=True,
              help="A site or subgroup with fewer women with cancer is named and not judged.")  # fmt: skip
def retrain(
    passport: Path, name: str, output: Path, margin: float, group_margin: float, least_positives: int
) -> None:
    """Write the protocol of the next study from the released model of PASSPORT, which it may replace at its end.

    All terms are those of the earlier study; `mammofed simulate protocol ... weights=PASSPORT` changes them and
    calibrates the noise anew.

    Example:  mammofed server retrain density-2027/passport.json --study density-2028 --output next
    """
    from server.retrain import Margins
    from server.retrain import retrain as plan_retraining

    plan = plan_retraining(passport, name, output, Margins(margin, group_margin, least_positives))
    for line in plan.words():
        click.echo(line)
    click.echo(f"Next      `mammofed server propose HOME {plan.protocol_file} --weights {plan.weights_file}`")


@server.command()
@click.argument("old", type=click.Path(exists=True, path_type=Path))
@click.argument("new", type=click.Path(exists=True, path_type=Path))
@click.option("--evaluator", required=True, type=click.Path(exists=True, path_type=Path),
              help="Home of the evaluator, whose disk has the scores of either model.")  # fmt: skip
@click.option("--earlier-evaluator", type=click.Path(exists=True, path_type=Path),
              help="That of the old study, where it is another.")  # fmt: skip
@click.option("--drift", "drift", nargs=2, multiple=True, metavar="THEN NOW",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Two prepared cohorts whose tables are compared; may be given again.")  # fmt: skip
def judge(
    old: Path, new: Path, evaluator: Path, earlier_evaluator: Path | None, drift: tuple[tuple[Path, Path], ...]
) -> None:
    """Decide whether the model of NEW replaces that of OLD: not inferior overall, at each site, in each subgroup.

    The exit code is 0 when it does and 62 when it does not.

    Example:  mammofed server judge density-2027 density-2028 --evaluator evaluator
    """
    from server.reporting.replacement import REPLACEMENT, decide, words_of
    from server.reporting.report import write_report
    from server.reporting.words import REPORT_NAME
    from shared_model.errors import ReplacementError

    pairs = {str(now): (then, now) for then, now in drift}
    decision = decide(old, new, evaluator=evaluator, earlier_evaluator=earlier_evaluator, cohorts=pairs)
    for line in words_of(decision):
        click.echo(line)
    folder = new if new.is_dir() else new.parent
    click.echo(f"Written   {folder / REPLACEMENT}")
    if (folder / REPORT_NAME).is_file():
        click.echo(f"Report    {write_report(folder)}")
    if not decision.verdict.replaces:
        raise ReplacementError(f"{decision.old.passport.study} stays in use", remedy="read why above")


@server.command()
@HOME
@click.argument("study")
def passport(home: Path, study: str) -> None:
    """Sign the passport of a STUDY that has ended, where the daemon could not; one that is there stays, but for figures
    of the model that came after it (`localisation.json`): then it is signed again, and the former one is kept.

    Example:  mammofed server passport coordinator density-2027
    """
    from server.deploy.passports import sign_passport

    path, signed = sign_passport(_open(home), study)
    click.echo(f"Passport  {path} ({signed.sha256[:16]})")
    click.echo(f"Next      `mammofed passport verify {path.parent}`")


server.add_command(doctor)
server.add_command(nginx)
server.add_command(explore)
server.add_command(rollback)
server.add_command(influence)


def _open(home: Path) -> CoordinatorHome:
    from server.deploy.home import CoordinatorHome

    return CoordinatorHome.open(home.resolve())


def _site_init(home: CoordinatorHome, role: str) -> str:
    """What a site types with its invitation: all that differs from what it would take by itself."""
    settings = home.settings
    host = f"[{settings.hosts[0]}]" if ":" in settings.hosts[0] else settings.hosts[0]
    words = ["mammofed site init HOME --invite TOKEN", f"--server {host}:{settings.port}", "--cohort COHORT"]
    if settings.enrol_port != settings.port % 65535 + 1:
        words.append(f"--enrol-port {settings.enrol_port}")
    if role != "site":
        words.append(f"--role {role}")
    return " ".join(words)
