"""TLS contexts for DICOM associations and DICOMweb; called by the sources and the outbox."""

from __future__ import annotations

import ssl
from pathlib import Path

from client.ingest.sources.settings import Tls
from shared_model.errors import ConfigError


def calling_context(tls: Tls) -> ssl.SSLContext:
    """For associations that we open: the other side's certificate and name are checked, ours is shown.

    Raises:
        ConfigError: a file cannot be used.
    """
    context = https_context(tls.ca)
    _show(context, tls)
    return context


def answering_context(tls: Tls) -> ssl.SSLContext:
    """For associations that we accept: a caller without a certificate of `ca` is turned away.

    Raises:
        ConfigError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # BCP 195 (RFC 9325) 3.1.1
    context.verify_mode = ssl.CERT_REQUIRED
    _trust(context, tls.ca)
    _show(context, tls)
    return context


def https_context(ca: Path | None) -> ssl.SSLContext:
    """For a server whose certificate `ca` signed, or, with None, whom this machine trusts anyway.

    Raises:
        ConfigError: the file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if ca is not None else ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is not None:
        _trust(context, ca)
    return context


def _trust(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        raise _unusable("authority's certificate", ca, error) from None


def _show(context: ssl.SSLContext, tls: Tls) -> None:
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise _unusable("certificate or its key", tls.certificate, error) from None


def _no_password() -> str:
    """OpenSSL would ask on the terminal otherwise, and an import that runs at night would wait for ever."""
    raise ValueError("the key is encrypted")


def _unusable(what: str, path: Path, error: OSError | ValueError) -> ConfigError:
    # An SSLError's text is OpenSSL's own and tells its readers little; its type says that the file is no such PEM.
    plain = isinstance(error, OSError) and not isinstance(error, ssl.SSLError)
    found = error.strerror if isinstance(error, OSError) and plain else type(error).__name__
    return ConfigError(f"the {what} cannot be used: {path}", found=found, expected="a PEM file, its key not encrypted")
