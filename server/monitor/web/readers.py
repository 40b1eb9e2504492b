"""Client certificates for the page: TLS that asks for one, and who may read with it; used by `serve`.

    --client-ca FILE              whoever has a certificate of this authority for TLS clients (RFC 5280 4.2.1.12)
    --client-ca FILE --reader N   of them those alone whose common name was given

A member's own certificate (`urn:mammofed:ROLE:NAME`) opens the page only where its name was given: the page shows the
numbers of every site, which the watch stream keeps from other members.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.monitor.web.guard import HEADERS
from shared_model.certificates import load_certificate, member_of
from shared_model.errors import CertificateError, ConfigError, MammoFedError

AGAIN_S: Final = 5.0  # between looks at a connection that stays: who is revoked reads no longer than that

log = logging.getLogger("mammofed.monitor")


@dataclass(frozen=True, kw_only=True)
class Readers:
    """Who may read with a certificate.

    ca: PEM file of the authorities that count. names: common names; empty: everybody with a certificate of them, but no
    member of a study. admit: asked besides with the certificate (DER), again and again while it reads; raises a
    `MammoFedError` for one that no longer counts.
    """

    ca: Path
    names: frozenset[str] = frozenset()
    admit: Callable[[bytes], object] = lambda der: None

    def check(self, der: bytes) -> None:
        """Check what TLS has verified.

        Raises:
            CertificateError: it does not open this page.
        """
        certificate = load_certificate(der)
        found = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        name = found[0] if len(found) == 1 else ""
        if name not in self.names and (self.names or _is_member(certificate)):
            raise CertificateError("this certificate does not open this monitor", reason="unknown", found=name[:64],
                                   remedy="ask whoever runs it for `--reader` with this name")  # fmt: skip
        self.admit(der)


def _is_member(certificate: x509.Certificate) -> bool:
    try:
        member_of(certificate)
    except CertificateError:
        return False
    return True


def page_context(cert: Path, key: Path, readers: Readers | None) -> ssl.SSLContext:
    """TLS 1.3 for the page; with `readers` nobody comes in without a certificate for TLS clients of their authority.

    Raises:
        ConfigError: the files are no certificate and its key, or hold no authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{cert} and {key} are no certificate and its key: {error}", expected="PEM files") from None
    if readers is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.num_tickets = 0  # a resumed session would skip the certificate's check
        try:
            context.load_verify_locations(readers.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{readers.ca} holds no certificate authority: {error}", expected="a PEM file",
                              remedy="give the authority's own certificate to --client-ca")  from None  # fmt: skip
    return context


def checked_by(readers: Readers) -> type[H11Protocol]:
    """The server's protocol, which looks at the certificate of each connection, and again while it stays."""

    class Checked(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            fault = self._fault()
            if fault:
                self.app = _refusal(fault)
            else:
                self.loop.call_later(AGAIN_S, self._again)

        def _again(self) -> None:
            if self.transport.is_closing():
                return
            if self._fault():
                self.transport.abort()  # a stream that is under way ends, too
            else:
                self.loop.call_later(AGAIN_S, self._again)

        def _fault(self) -> str:
            try:
                readers.check(self.transport.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
            except MammoFedError as error:
                log.warning("a reader was refused: %s", error)
                return error.problem
            return ""

    return Checked


def _refusal(words: str) -> Any:
    return PlainTextResponse(f"{words}\n", 403, dict(HEADERS))
