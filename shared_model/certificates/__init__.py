"""Keys, certificates and TLS settings that coordinator and sites must hold identically; called by both ends.

A member's certificate carries its name (common name) and `urn:mammofed:ROLE:NAME` (subject alternative name, RFC 5280
4.2.1.6), is good for TLS clients only, and lives 30 days. Keys are EC P-256 for TLS and EC P-384 for Flower's node
authentication. Only TLS 1.3 is spoken (RFC 8446), with both ends authenticated.
"""

from shared_model.certificates.documents import (
    BACKDATED,
    LEAF_DAYS,
    RENEW_BELOW_DAYS,
    check_window,
    der,
    end_entity,
    host_names,
    load_certificate,
    loopback_credentials,
    make_csr,
    member_of,
    names,
    pem,
    read_csr,
)  # fmt: skip
from shared_model.certificates.keys import (
    MAX_DER_BYTES,
    key_pem,
    load_key,
    load_node_key,
    load_spki,
    new_node_key,
    new_tls_key,
    node_key_file,
    sign,
    signed_by,
    spki,
)  # fmt: skip
from shared_model.certificates.member import Member, Role
from shared_model.certificates.refusals import REFUSALS, REFUSED
from shared_model.certificates.tls import (
    ALPN,
    CONTROL_ALPN,
    client_context,
    enrolling_context,
    enrolling_server_context,
    loopback_server_context,
    server_context,
)  # fmt: skip

__all__ = [
    "ALPN", "BACKDATED", "CONTROL_ALPN", "LEAF_DAYS", "MAX_DER_BYTES", "REFUSALS", "REFUSED", "RENEW_BELOW_DAYS",
    "Member", "Role", "check_window", "client_context", "der", "end_entity", "enrolling_context",
    "enrolling_server_context", "host_names", "key_pem", "load_certificate", "load_key", "load_node_key", "load_spki",
    "loopback_credentials", "loopback_server_context", "make_csr", "member_of", "names", "new_node_key", "new_tls_key",
    "node_key_file", "pem", "read_csr", "server_context", "sign", "signed_by", "spki",
]  # fmt: skip
