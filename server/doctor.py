"""Examines a coordinator: its machine, its doors, certificates, members and records; called by `server doctor`.

Nothing is changed. What matters most is looked at first: Flower's control routes take orders from whoever reaches them,
so SuperLink must listen on the loopback alone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from cryptography import x509

from server.deploy.home import CoordinatorHome
from server.deploy.nginx import runs
from server.enrolment.registry import Enrolled, Issued, MemberState
from shared_model.audit import verify
from shared_model.certificates import enrolling_context
from shared_model.doctor import Check, Diagnosis, examined
from shared_model.doctor.check import amber, green, red
from shared_model.doctor.machine import (
    GIB,
    available_memory,
    clock,
    clock_is_disciplined,
    days_left,
    disk_of,
    memory,
    name_of,
    program,
    versions_here,
)  # fmt: skip
from shared_model.errors import ConfigError
from shared_model.private_files import read_private

HANDSHAKE_S = 5.0
DAY_S = 86400.0
CA_UNEASY_DAYS = 365.0  # every site enrols again with a new one
SERVER_UNEASY_DAYS = 30.0  # `serve` makes it anew below 60, whenever it starts
MEMBER_UNEASY_DAYS = 7.0  # a site renews below 23
CRL_UNEASY_DAYS = 4.0  # of seven
PROGRAMS = ("flower-superlink", "flower-superexec", "flwr")
_LISTENS = "0A"  # TCP_LISTEN in /proc/net/tcp (Linux, include/net/tcp_states.h)

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A door as a handshake found it. tls: its version; days: until its certificate runs out."""

    tls: str
    days: float


def examine(home: CoordinatorHome, *, now: Callable[[], float] = time.time) -> Diagnosis:
    """All checks of a coordinator; takes a second or two.

    Raises:
        ConfigError: another user's home: SQLite would leave files there that its owner cannot open.
    """
    if home.folder.stat().st_uid != os.geteuid():
        raise ConfigError("this home belongs to another user", found=f"uid {home.folder.stat().st_uid}",
                          expected=f"uid {os.geteuid()}", remedy="run doctor as that user")  # fmt: skip
    settings, checks = home.settings, list[Check]()
    checks += examined("superlink", "SuperLink", lambda: superlink(listeners(), settings.link_port))
    checks += examined("versions", "Versions", versions_here)
    checks += examined("programs", "Flower's programs", lambda: programs(program))
    checks += examined("memory", "Memory", lambda: memory(
        available_memory(), red_below=GIB, amber_below=4 * GIB, what="SuperLink and the studies"))  # fmt: skip
    checks += examined("disk", "Disk", lambda: disk_of(
        home.folder, red_below=2 * GIB, amber_below=20 * GIB, what="studies and SuperLink's database"))  # fmt: skip
    checks += examined("clock", "Clock", lambda: clock(None, doubt_s=0.0, disciplined=clock_is_disciplined()))
    for host in settings.hosts:
        checks += examined("dns", "DNS", lambda host=host: name_of(host, name="dns", title="DNS"))  # type: ignore[misc]
    checks += examined("ca", "Certificate authority", lambda: authority(home, now()))
    for name, title, port in (("door", "Door for sites", settings.port),
                              ("enrol_door", "Door for enrolment", settings.enrol_port)):  # fmt: skip
        checks += examined(name, title, lambda n=name, t=title, p=port: door(  # type: ignore[misc]
            look(home, p, now()), name=n, title=t, port=p))  # fmt: skip
    checks += examined("nginx", "nginx", lambda: nginx(home, now()))
    checks += examined("signing_key", "Signing key", lambda: signing_key(home))
    checks += examined("members", "Members", lambda: members_of(home, now()))
    checks += examined("audit", "Audit log", lambda: audit(home))
    return Diagnosis(who=settings.name, role="coordinator", release=version("mammofed"),
                     when=f"{datetime.fromtimestamp(now(), UTC):%Y-%m-%d %H:%M} UTC", checks=tuple(checks))  # fmt: skip


# --- SuperLink ---


def superlink(listening: Iterable[tuple[Address, int]], port: int) -> Check:
    """Where SuperLink listens: whoever reaches its control routes runs code at every hospital."""
    title = "SuperLink"
    there = [address for address, number in listening if number == port]
    if any(not _is_loopback(address) for address in there):
        return red("superlink", title, f"other machines can reach port {port}: whoever does, commands every site",
                   to_do="stop it at once; start it by `mammofed server serve` alone: that binds it to the loopback")
    if not there:
        return amber("superlink", title, f"nobody listens on port {port} of the loopback",
                     to_do="start `mammofed server serve`; if it runs, read SuperLink's log in link/logs")  # fmt: skip
    return green("superlink", title, f"listens on the loopback alone, port {port}")


def _is_loopback(address: Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def listeners(proc: Path = Path("/proc/net")) -> list[tuple[Address, int]]:
    """Addresses and ports on which this machine listens (proc(5), /proc/net/tcp and tcp6)."""
    found = []
    for path in (proc / "tcp", proc / "tcp6"):
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            local, _, state = line.split()[1:4]
            if state == _LISTENS:
                address, _, port = local.partition(":")
                words = bytes.fromhex(address)  # each group of four bytes is in the machine's order: little-endian
                raw = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.append((ip_address(raw), int(port, 16)))
    return found


def programs(find: Callable[[str], str | None]) -> Check:
    """Flower's programs, which the daemon starts."""
    absent = [name for name in PROGRAMS if find(name) is None]
    if absent:
        return red("programs", "Flower's programs", f"not found: {', '.join(absent)}",
                   to_do="install the release again, and run doctor with that installation's `mammofed`")  # fmt: skip
    return green("programs", "Flower's programs", f"{', '.join(PROGRAMS)} are installed")


# --- doors and keys ---


def look(home: CoordinatorHome, port: int, now: float) -> Seen | None:
    """A handshake with a door on this machine, as an invited site makes it; None: nobody listens.

    Raises:
        OSError: it listens and fails at TLS, or shows another certificate than one of our CA for our host.
    """
    context = enrolling_context(ca_pem=read_private(home.folder / "ca" / "ca.pem").decode("ascii"))
    listen = home.settings.listen
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104  # compared, not bound
    try:
        connection = socket.create_connection((host, port), timeout=HANDSHAKE_S)
    except ConnectionRefusedError:
        return None
    with connection, context.wrap_socket(connection, server_hostname=home.settings.hosts[0]) as tls:
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        return Seen(tls=tls.version() or "", days=(certificate.not_valid_after_utc.timestamp() - now) / DAY_S)


def door(seen: Seen | None, *, name: str, title: str, port: int) -> Check:
    """A door of the coordinator."""
    if seen is None:
        return amber(name, title, f"nobody listens on port {port}", to_do="start `mammofed server serve`")
    if seen.tls != "TLSv1.3":
        return red(name, title, f"it speaks {seen.tls}", to_do="whatever stands there, only TLS 1.3 is to be offered")
    return days_left(seen.days, name=name, title=title, what=f"port {port} speaks {seen.tls}; its certificate",
                     amber_below=SERVER_UNEASY_DAYS, to_do="restart `mammofed server serve`: it makes another")


def nginx(home: CoordinatorHome, now: float) -> list[Check]:
    """nginx in the gateway's place, where it was asked for: it runs, and its list of revocations is fresh.

    Raises:
        StorageError: the list is absent.
    """
    folder = home.folder / "nginx"
    if not (folder / "nginx.conf").exists():
        return []
    ends = x509.load_pem_x509_crl(read_private(folder / "crl.pem")).next_update_utc
    assert ends is not None, "ours have one"
    fresh = days_left((ends.timestamp() - now) / DAY_S, name="crl", title="nginx", what="its revocation list",
                      amber_below=CRL_UNEASY_DAYS, to_do="start `mammofed server serve`, which writes it each day: "
                      "once it has run out, nginx admits nobody")  # fmt: skip
    if runs(folder / "nginx.pid") is None:
        return [fresh, amber("nginx", "nginx", "it does not run", to_do="start it with the home's nginx/nginx.conf",
                             local=f"nginx -c {folder / 'nginx.conf'}")]  # fmt: skip
    return [fresh, green("nginx", "nginx", "it runs")]


def authority(home: CoordinatorHome, now: float) -> Check:
    """The certificate authority: readable, a pair, in its time.

    Raises:
        CertificateError, StorageError, ConfigError: it is not.
    """
    ends = home.authority().certificate.not_valid_after_utc.timestamp()
    return days_left((ends - now) / DAY_S, name="ca", title="Certificate authority", what="it",
                     amber_below=CA_UNEASY_DAYS, to_do="plan a new authority: every site enrols again")  # fmt: skip


def signing_key(home: CoordinatorHome) -> Check:
    """The key that signs protocols and requests.

    Raises:
        SignatureError, StorageError: absent, damaged or open to others.
    """
    return green("signing_key", "Signing key", f"its six words are: {home.signing_key.public.fingerprint}")


# --- records ---


def members_of(home: CoordinatorHome, now: float) -> list[Check]:
    """Who waits, and whose certificate runs out.

    Raises:
        StorageError: the registry is absent or damaged.
    """
    if not (home.folder / "registry" / "registry.sqlite").exists():
        return [red("members", "Members", "the registry is gone: nobody is admitted", to_do="restore it from a backup")]
    with home.registry() as registry:
        return [members(registry.members(), registry.issued(), now)]


def members(enrolled: Sequence[Enrolled], issued: Sequence[Issued], now: float) -> Check:
    """The members, from the registry."""
    title = "Members"
    confirmed = [there.member.site for there in enrolled if there.state is MemberState.CONFIRMED]
    waiting = [there.member.site for there in enrolled if there.state is MemberState.PENDING]
    ends: dict[str, float] = {}
    for one in issued:
        if one.state == "valid":
            until = one.certificate.not_valid_after_utc.timestamp()
            ends[one.site] = max(until, ends.get(one.site, until))
    gone = [site for site in confirmed if site in ends and ends[site] <= now]
    soon = [site for site in confirmed if site in ends and 0 < ends[site] - now < MEMBER_UNEASY_DAYS * DAY_S]
    words = f"{len(confirmed)} enrolled" + "".join(
        f"; {what}: {', '.join(sites)}" for what, sites in
        (("waiting to be confirmed", waiting), ("certificate ran out", gone), ("certificate runs out this week", soon))
        if sites)  # fmt: skip
    to_do = [cure for sites, cure in (
        (waiting, "call those who wait and run `mammofed server enrol`"),
        (gone, "revoke those who ran out and invite them again"),
        (soon, "call those who run out: their courier has not renewed, so it is not running"),
    ) if sites]  # fmt: skip
    return amber("members", title, words, to_do="; ".join(to_do)) if to_do else green("members", title, words)


def audit(home: CoordinatorHome) -> Check:
    """The audit log, line by line.

    Raises:
        AuditError, SignatureError, StorageError: changed, cut, or absent.
    """
    found = verify(home.folder / "audit.jsonl", key=home.signing_key.public)
    if found.refusals:
        words = f"whole, {found.entries} entries; {found.refusals} rewritten logs of sites were refused"
        return red("audit", "Audit log", words,
                   to_do="read its entries `head_refused` and call those sites: their history was changed")  # fmt: skip
    return green("audit", "Audit log", f"whole and in order, {found.entries} entries")
