"""Examines a site: its machine, its line to the coordinator, its certificate, its cohort, its policy, its budget.

Run by the site's administrator as root or, role by role, as the users who own these; what a user may not read is said.
Nothing is changed. The functions that decide take plain values; those of one name with `_of` fetch them.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from client.deploy import doctor_data, gpu
from client.deploy.home import SiteHome
from client.deploy.identity import SiteIdentity, Stage, Standing
from client.deploy.line import Line, measure
from client.deploy.proxy import Proxy
from client.deploy.tunnel import Tunnel
from client.trainer.client import call
from client.trainer.config import SiteConfig
from shared_model.audit import verify
from shared_model.certificates import CONTROL_ALPN
from shared_model.doctor import Check, Diagnosis, Level, examined
from shared_model.doctor.check import amber, green, red
from shared_model.doctor.machine import (
    GIB,
    available_memory,
    clock,
    clock_is_disciplined,
    disk_of,
    memory,
    name_of,
    program,
    versions_here,
)  # fmt: skip
from shared_model.errors import MammoFedError
from shared_model.messages import DescribeReply, DescribeRequest, Frame, decode, encode
from shared_model.protocol import Protocol

MODEL_BYTES = {"tiny": 450_000, "small": 1_040_000, "medium": 15_000_000, "full": 30_100_000}
"""Weights of each size in float32 with a wide table of clinical features; a test builds them and compares."""
POLL_S = 7.0  # SuperNode asks every 3 s, SuperExec every second, the ServerApp every 3 s (research on Flower, 3)
DESCRIBE_S = 10.0
CERTIFICATE_UNEASY_DAYS = 7.0


def examine(home: SiteHome, *, proxy: Proxy | None = None, now: Callable[[], float] = time.time) -> Diagnosis:
    """All checks of a site. Takes some seconds: up to five of them are the transfer, the rest torch's start."""
    checks: list[Check] = []
    checks += examined("versions", "Versions", versions_here)
    checks += examined("programs", "Flower's programs", lambda: programs(program))
    checks += examined("memory", "Memory", lambda: memory(
        available_memory(), red_below=GIB, amber_below=4 * GIB, what="trainer and courier"))  # fmt: skip
    checks += examined("disk", "Disk", lambda: disk_of(
        home.folder, red_below=GIB, amber_below=5 * GIB, what="ledger, replies and logs"))  # fmt: skip
    identity = _identity_of(home, now)
    checks += examined("certificate", "Certificate", lambda: certificate(
        SiteIdentity.open(home.folder / "identity", clock=now).standing()))  # fmt: skip
    config, found = _config_of(home)
    checks += found
    protocols, found = _protocols_of(config)
    checks += found
    checks += _line_of(identity, proxy, protocols, now)
    for path, what in ((home.courier / "audit.jsonl", "the courier's"), (home.state / "audit.jsonl", "the trainer's")):
        checks += examined("audit", "Audit log", functools.partial(audit, path, what))
    if config is not None:
        checks += _trainer_of(home, config, protocols)
    who = identity.settings.site if identity else "a site"
    return Diagnosis(who=who, role=str(identity.settings.role) if identity else "site", release=version("mammofed"),
                     when=f"{datetime.fromtimestamp(now(), UTC):%Y-%m-%d %H:%M} UTC", checks=tuple(checks))  # fmt: skip


def _identity_of(home: SiteHome, now: Callable[[], float]) -> SiteIdentity | None:
    try:
        return SiteIdentity.open(home.folder / "identity", clock=now)
    except (MammoFedError, OSError):
        return None  # `certificate` says why


# --- machine ---


def programs(find: Callable[[str], str | None]) -> Check:
    """Flower's programs, which the courier starts."""
    absent = [name for name in ("flower-supernode", "flower-superexec") if find(name) is None]
    if absent:
        return red("programs", "Flower's programs", f"not found: {', '.join(absent)}",
                   to_do="install the release again, and run doctor with that installation's `mammofed`")  # fmt: skip
    return green("programs", "Flower's programs", "flower-supernode and flower-superexec are installed")


def audit(path: Path, what: str) -> list[Check]:
    """An audit log, line by line; none where it was not begun.

    Raises:
        AuditError, SignatureError, StorageError: changed, cut or unreadable.
    """
    if not path.exists():
        return []
    found = verify(path)
    if found.refusals:
        return [red("audit", "Audit log", f"{what}: {found.refusals} rewritten logs of the coordinator were refused",
                   to_do="read its entries `head_refused` and call the coordinator: its history was changed")]
    return [green("audit", "Audit log", f"{what}: whole and in order, {found.entries} entries")]


# --- coordinator ---


def certificate(standing: Standing) -> Check:
    """The site's own certificate."""
    title, words = "Certificate", standing.words
    if standing.stage is Stage.ENROLLING:
        return amber("certificate", title, f"not there yet: {words}",
                     to_do="read the six words of both keys to the coordinator over the phone; leave `join` running")
    if standing.stage in (Stage.EXPIRED, Stage.NOT_YET_VALID):
        cause, _, cure = words.partition("; ")
        return red("certificate", title, cause, to_do=cure)
    if standing.days_left is not None and standing.days_left < CERTIFICATE_UNEASY_DAYS:
        to_do = f"let `join` run and reach the coordinator within {standing.days_left:.0f} days"
        return amber("certificate", title, words, to_do=to_do)
    return green("certificate", title, words)


def _line_of(
    identity: SiteIdentity | None, through: Proxy | None, protocols: Sequence[Protocol], now: Callable[[], float]
) -> list[Check]:
    line: Line | None = None

    def look() -> list[Check]:
        nonlocal line
        assert identity is not None
        if identity.standing().stage is Stage.ENROLLING:
            asyncio.run(_knock(Tunnel(identity, proxy=through, clock=now, alpn=CONTROL_ALPN, enrolling=True)))
            return [green("line", "Coordinator", "its door for invitations answers over TLS 1.3, with a certificate of "
                          "the coordinator that invited this site")]  # fmt: skip
        line = asyncio.run(measure(Tunnel(identity, proxy=through, clock=now), clock=now))
        return [admitted(line), releases(version("mammofed"), line.hello.get("release")), *round_time(line, protocols)]

    checks: list[Check] = []
    if identity is not None:
        host = identity.settings.host
        checks += examined("dns", "DNS", lambda: name_of(
            host, name="dns", title="DNS", proxied=through is not None))  # fmt: skip
        if through is not None:
            checks += examined("proxy", "Proxy", lambda: proxy(through))
        checks += examined("line", "Coordinator", look)
    ahead_s = None if line is None else line.ahead_s
    doubt_s = 0.0 if line is None else line.rtt_s / 2
    checks += examined("clock", "Clock", lambda: clock(ahead_s, doubt_s=doubt_s, disciplined=clock_is_disciplined()))
    return checks


async def _knock(tunnel: Tunnel) -> None:
    """Make a connection to the door for invitations, and end it."""
    async with tunnel.connection():
        pass


def proxy(given: Proxy | None) -> Check:
    """Whether the proxy's own name is known; whether it lets us through is seen by `line`."""
    assert given is not None
    found = name_of(given.host, name="proxy", title="Proxy")
    if found.level is not Level.GREEN:  # its name is the hospital's own and stays here
        return red("proxy", "Proxy", "the proxy's name is not known here",
                   to_do="check its address and this machine's DNS", local=given.host)  # fmt: skip
    login = "with a login" if given.credentials else "without a login"
    return green("proxy", "Proxy", f"the hospital's proxy is used, {login}", local=f"{given.host}:{given.port}")


def admitted(line: Line) -> Check:
    """TLS chain and admission: both have been checked by whoever answered."""
    speed = "" if line.up is None or line.down is None else f", {_rate(line.up)} up, {_rate(line.down)} down"
    return green("line", "Coordinator", f"reached over TLS 1.3 with both certificates accepted, as "
                 f"{line.hello.get('site')}; round trip {line.rtt_s * 1000:.0f} ms{speed}")  # fmt: skip


def releases(here: str, there: object) -> Check:
    """The release at both ends."""
    title = "Release"
    if not isinstance(there, str):
        return green("release", title, f"{here} here; the coordinator's door does not tell its own")
    if here != there:
        return red("release", title, f"{here} here, {there[:32]} at the coordinator",
                   to_do="install the coordinator's release; a protocol names the one that it was written for")
    return green("release", title, f"{here} at both ends")


def round_time(line: Line, protocols: Sequence[Protocol]) -> list[Check]:
    """Seconds that one round spends on this line: weights down, update up, and Flower's polling; without training."""
    if line.up is None:
        return []
    down = line.down or line.up
    title, checks = "Round", []
    asked = [(p.study, p.model.size, p.federation.deadline_s) for p in protocols] or [("the largest model", "full", 0)]
    for study, size, deadline_s in asked:
        bytes_ = MODEL_BYTES[size]
        seconds = bytes_ / down + bytes_ / line.up + POLL_S
        words = (f"{study}: {bytes_ / 1e6:.1f} MB each way take {seconds:.0f} s a round on this line (with Flower's "
                 "polling, without training)")  # fmt: skip
        to_do = "ask the network team for a faster line out, or the coordinator for a longer deadline"
        if deadline_s and seconds > deadline_s:
            checks.append(red("round", title, f"{words}; a round's deadline is {deadline_s:.0f} s", to_do=to_do))
        elif deadline_s and seconds > deadline_s / 2:
            checks.append(amber("round", title, f"{words}; a round's deadline is {deadline_s:.0f} s", to_do=to_do))
        else:
            checks.append(green("round", title, words))
    return checks


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second * 8 / 1e6:.1f} Mbit/s"


# --- trainer ---


def _config_of(home: SiteHome) -> tuple[SiteConfig | None, list[Check]]:
    found: list[SiteConfig] = []

    def look() -> list[Check]:
        found.append(home.config_for(home.trusted_coordinator()))
        return []

    checks = examined("policy", "Policy", look)
    return (found[0] if found else None), checks


def _protocols_of(config: SiteConfig | None) -> tuple[list[Protocol], list[Check]]:
    """Approved protocols that are in order, and what is wrong with the others."""
    found: list[Protocol] = []
    listed: list[Path] = []

    def listing() -> list[Check]:
        if config is not None and config.protocols.exists():
            listed.extend(sorted(path for path in config.protocols.iterdir() if path.suffix == ".json")[:100])
        return []

    checks = examined("protocols", "Protocols", listing)
    for path in listed:

        def look(path: Path = path) -> list[Check]:
            assert config is not None
            found.append(doctor_data.read_protocol(path, config.coordinator))
            return []

        checks += examined("protocol", f"Protocol {path.stem[:40]}", look)
    return found, checks


def _trainer_of(home: SiteHome, config: SiteConfig, protocols: Sequence[Protocol]) -> list[Check]:
    checks = examined("policy", "Policy", lambda: doctor_data.policy(config))
    checks += examined("cohort", "Cohort", lambda: doctor_data.cohort_of(config, protocols))
    checks += examined("gpu", "GPU", lambda: (
        gpu.gpu("cpu", gpu.TorchSees(torch="", cuda=None), None) if config.device == "cpu"
        else gpu.gpu(config.device, gpu.torch_sees(), gpu.driver_version())))  # fmt: skip
    if not protocols:
        return [*checks, green("protocols", "Protocols", "none is approved yet, so no trainer runs")]
    checks += examined("trainer", "Trainer", lambda: trainer_of(home.socket, config, version("mammofed")))
    for protocol in protocols:
        checks += examined("terms", "Study", functools.partial(doctor_data.terms, config, protocol))
        checks += examined("budget", "Privacy budget", functools.partial(doctor_data.budget_of, config, protocol))
    return checks


def trainer_of(socket: Path, config: SiteConfig, here: str) -> Check:
    """Whether the trainer's process answers, and what it says about itself."""
    if not socket.exists():
        return amber("trainer", "Trainer", "its process is not running", local=str(socket),
                     to_do="start it: systemctl start mammofed-trainer, or `mammofed site join`")  # fmt: skip
    began = time.perf_counter()
    reply = decode(call(socket, config.site, encode(Frame(DescribeRequest())), DESCRIBE_S)).message
    seconds = time.perf_counter() - began
    if not isinstance(reply, DescribeReply):
        return red("trainer", "Trainer", "it answers something else than what it is", to_do="look into its log")
    if reply.release != here:
        return red("trainer", "Trainer", f"it runs release {reply.release}, installed is {here}",
                   to_do="restart the trainer")  # fmt: skip
    return green("trainer", "Trainer", f"it answers in {seconds * 1000:.0f} ms, computes on {reply.device} and serves "
                 f"{len(reply.protocols)} approved protocols")  # fmt: skip
