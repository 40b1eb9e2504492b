"""TLS settings of both ends: 1.3 only, no list of the machine's, no session resumed at the coordinator."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from shared_model.certificates.refusals import REFUSALS
from shared_model.errors import CertificateError

ALPN = "http/1.1"
CONTROL_ALPN = "mammofed-control/1"
"""Names the control service (`shared_model.control`) at the coordinator's door; no name or `ALPN`: Flower's routes."""


def server_context(credentials: Path, *, ca_pem: str) -> ssl.SSLContext:
    """TLS 1.3 for the coordinator: nobody comes in without a certificate of this CA for TLS clients.

    Args:
        credentials: key and certificate in one PEM file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would skip the certificate's check, and a revoked site is to knock in full each time.
    context.num_tickets = 0
    return _strict(context, credentials, ca_pem, (ALPN, CONTROL_ALPN))


def enrolling_server_context(credentials: Path, *, ca_pem: str) -> ssl.SSLContext:
    """TLS 1.3 for the coordinator's enrolment door: who knocks has no certificate yet, and knows ours.

    Args:
        credentials: key and certificate in one PEM file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _strict(context, credentials, ca_pem, (CONTROL_ALPN,))


def client_context(credentials: Path, *, ca_pem: str, alpn: str = ALPN) -> ssl.SSLContext:
    """TLS 1.3 for a site: only the coordinator's CA is trusted, never the machine's list, and the host is checked."""
    return _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), credentials, ca_pem, (alpn,))


def enrolling_context(*, ca_pem: str, alpn: str = ALPN) -> ssl.SSLContext:
    """TLS 1.3 for a site that has no certificate yet: it knows the coordinator's CA from its invitation."""
    return _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), None, ca_pem, (alpn,))


def loopback_server_context(credentials: Path) -> ssl.SSLContext:
    """TLS 1.3 on this machine's loopback, for a process that is told to trust `loopback_credentials`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(credentials)
    return context


def _strict(
    context: ssl.SSLContext, credentials: Path | None, ca_pem: str, alpn: Sequence[str]
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(list(alpn))
    context.load_verify_locations(cadata=ca_pem)
    if credentials is not None:
        try:
            context.load_cert_chain(credentials)
        except (OSError, ssl.SSLError):
            raise CertificateError(f"{credentials} is absent or damaged", reason="unknown",
                                   expected="a key and its certificate",
                                   remedy=REFUSALS["unknown"]) from None  # fmt: skip
    return context
