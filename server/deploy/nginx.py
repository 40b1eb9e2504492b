"""nginx in the gateway's place: its configuration, and the lists that follow the membership; for `server nginx`.

    <home>/nginx/nginx.conf    fleet routes for members by mutual TLS 1.3; the control service's bytes go through unread
    <home>/nginx/lists.conf    certificate's name -> the node key that may speak through it
    <home>/nginx/crl.pem       revoked and superseded certificates; good for a week
    <home>/nginx/ca.pem, server.pem, transfer.bin

The gateway goes on running, on the loopback, for the control service and for invitations. The daemon calls
`NginxFront.step`, which writes the lists anew and reloads nginx when the membership has changed, and each day.
"""

from __future__ import annotations

import os
import pwd
import re
import signal
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from jinja2 import Environment, PackageLoader, StrictUndefined

from server.deploy.home import CoordinatorHome
from server.enrolment.authority import Authority
from server.enrolment.http_guard import (
    FLEET_ROUTES,
    MAX_BODY_BYTES,
    MAX_TRANSFER_BYTES,
    TRANSFER_BYTES,
    node_key_header,
)
from server.enrolment.registry import Enrolled, Issued, MemberState, Registry
from shared_model.certificates import CONTROL_ALPN
from shared_model.errors import ConfigError, StorageError
from shared_model.private_files import make_private_folder, read_private, write_private

REFRESH_S = 86400.0
SHUTDOWN_S = 5
MAX_SOCKET_PATH = 100  # sockaddr_un has 108 bytes
_SAFE_PATH = re.compile(r"[A-Za-z0-9_./-]+")


class NginxFront:
    """The folder `nginx` of a coordinator's home."""

    def __init__(self, home: CoordinatorHome, *, clock: Callable[[], float] = time.time) -> None:
        self._home, self._clock = home, clock
        self.folder = home.folder.resolve() / "nginx"
        self._version: tuple[int, int] | None = None
        self._written = float("-inf")

    def write(self, *, listen: str, port: int, enrol_port: int) -> Path:
        """Write everything; returns the configuration's path.

        Args:
            listen: address for nginx; port, enrol_port: what sites connect to.

        Raises:
            ConfigError: the gateway itself stands there, or the home's path cannot stand in a configuration.
        """
        settings = self._home.settings
        try:
            outer, inner = ip_address(listen), ip_address(settings.listen)
        except ValueError:
            raise ConfigError("nginx listens on an IP address", found=listen, expected="0.0.0.0, say") from None
        if not inner.is_loopback:
            raise ConfigError("the gateway itself stands at the outer door", found=f"listen: {settings.listen}",
                              expected="listen: 127.0.0.1",
                              remedy="in coordinator.json set listen to 127.0.0.1 and port and enrol_port to other "
                              "ones, restart `server serve`, then write nginx's configuration")  # fmt: skip
        if outer.is_loopback and {port, enrol_port} & {settings.port, settings.enrol_port}:
            raise ConfigError("nginx and the gateway cannot have one port", found=f"{port}, {enrol_port}")
        if not _SAFE_PATH.fullmatch(str(self.folder)) or len(str(self.folder)) + 12 > MAX_SOCKET_PATH:
            raise ConfigError("the home's path cannot stand in nginx's configuration", found=str(self.folder),
                              expected=f"at most {MAX_SOCKET_PATH - 12} letters, digits and . _ - /")  # fmt: skip
        make_private_folder(self.folder)
        make_private_folder(self.folder / "temp")
        write_private(self.folder / "transfer.bin", b"." * TRANSFER_BYTES)
        with self._home.registry() as registry:
            self.write_lists(registry)
        text = render(
            folder=self.folder, listen=f"[{listen}]" if outer.version == 6 else listen, port=port,
            enrol_port=enrol_port, control_port=settings.port, inner_enrol_port=settings.enrol_port,
            link_port=settings.link_port, link_certificate=self._home.link.resolve() / "link.pem",
            user=pwd.getpwuid(self.folder.stat().st_uid).pw_name,
        )  # fmt: skip
        path = self.folder / "nginx.conf"
        write_private(path, text.encode())
        return path

    def write_lists(self, registry: Registry) -> None:
        """Write what follows the membership: CRL, node keys, and the server's own certificate."""
        authority = Authority.open(self._home.folder / "ca", clock=self._clock)
        write_private(self.folder / "ca.pem", authority.ca_pem.encode())
        credentials = authority.server_credentials(self._home.settings.hosts)
        write_private(self.folder / "server.pem", read_private(credentials))
        write_private(self.folder / "crl.pem", crl(authority, registry.issued()))
        write_private(self.folder / "lists.conf", lists(registry.members()).encode())

    def step(self, registry: Registry) -> bool:
        """Write the lists anew and reload nginx when somebody came or went, and each day; True when it did.

        Does nothing where `write` was never called.

        Raises:
            StorageError: the disk refuses, or nginx belongs to another user; tried again at the next step.
        """
        if not (self.folder / "nginx.conf").exists():
            return False
        found = registry.version()
        if found == self._version and 0 <= self._clock() - self._written < REFRESH_S:
            return False
        self.write_lists(registry)
        reload(self.folder / "nginx.pid")
        self._version, self._written = found, self._clock()
        return True


def render(*, folder: Path, listen: str, port: int, enrol_port: int, control_port: int, inner_enrol_port: int,
           link_port: int, link_certificate: Path, user: str) -> str:  # fmt: skip
    """nginx.conf as text."""
    environment = Environment(loader=PackageLoader("server.deploy", "."), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701  # no page
    return environment.get_template("nginx.conf.j2").render(
        folder=folder, listen=listen, port=port, enrol_port=enrol_port, control_port=control_port,
        inner_enrol_port=inner_enrol_port, link_port=link_port, link_certificate=link_certificate, user=user,
        control_alpn=re.escape(CONTROL_ALPN), routes=sorted(route.decode() for route in FLEET_ROUTES),
        max_body_bytes=MAX_BODY_BYTES, max_transfer_bytes=MAX_TRANSFER_BYTES, shutdown_s=SHUTDOWN_S,
        release=version("mammofed"),
    )  # fmt: skip


def crl(authority: Authority, issued: Iterable[Issued]) -> bytes:
    """The revocation list: what the registry no longer admits."""
    reasons = {"revoked": x509.ReasonFlags.privilege_withdrawn, "superseded": x509.ReasonFlags.superseded}
    return authority.revocation_list([(one.certificate, reasons[one.state]) for one in issued if one.state in reasons])


def lists(members: Iterable[Enrolled]) -> str:
    """Maps from a certificate's name to the member. Names are a-z, 0-9, - and _, so nothing has to be quoted."""
    there = [one for one in members if one.state is MemberState.CONFIRMED]
    columns: tuple[tuple[str, Callable[[Enrolled], str]], ...] = (
        ("node_key", lambda one: node_key_header(one.node).decode("ascii")),
        ("member_site", lambda one: one.member.site), ("member_role", lambda one: one.member.role.value),
    )  # fmt: skip
    text = "# Written by MammoFed: certificate's name -> its member.\n"
    for name, value in columns:
        rows = "".join(f'    "CN={one.member.site}" "{value(one)}";\n' for one in there)
        text += f'map $ssl_client_s_dn ${name} {{\n    default "";\n{rows}}}\n'
    return text


def runs(pid_file: Path) -> int | None:
    """The process of a running nginx."""
    try:
        number = int(pid_file.read_text())
        return number if Path(f"/proc/{number}/comm").read_text().strip() == "nginx" else None
    except (OSError, ValueError):
        return None


def reload(pid_file: Path) -> None:
    """Have a running nginx read its files again (SIGHUP to its master); one that is not running reads them anyway.

    Raises:
        StorageError: it is another user's process.
    """
    try:
        if (number := runs(pid_file)) is not None:
            os.kill(number, signal.SIGHUP)
    except ProcessLookupError:
        return
    except PermissionError:
        raise StorageError("nginx runs as another user and was not reloaded", found=str(pid_file),
                           remedy="run it as the user who owns the home, or reload it by hand") from None  # fmt: skip
