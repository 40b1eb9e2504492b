"""What may pass through the gateway: a pure decision about one HTTP request head, without I/O; called by the gateway.

One SuperLink port serves Flower's fleet, control and runtime routes, and whoever reaches the control routes runs code
at every hospital. So nothing passes but an exact list of fleet routes, compared byte by byte with nothing decoded, and
only with the node key that was bound to the certificate at enrolment.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

import h11
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared_model.certificates import load_spki

FLEET_ROUTES = frozenset(
    f"/v1/fleet/{name}".encode()
    for name in (
        "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat", "pull-messages",
        "push-messages", "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
    )
)  # fmt: skip
"""What a SuperNode of Flower 1.41 calls; a test compares it with Flower's own table."""

HELLO = b"/mammofed/hello"
"""Answered by the gateway itself: who you are to it. For doctor and for the tunnel's own look at the line."""

TRANSFER = b"/mammofed/transfer"
"""For doctor's look at the line: GET sends TRANSFER_BYTES, POST takes at most MAX_TRANSFER_BYTES and keeps nothing."""

NODE_KEY_HEADER = b"flwr-public-key"
TRANSFER_BYTES = 1 << 20
MAX_TRANSFER_BYTES = 4 << 20
MAX_BODY_BYTES = 160 << 20  # Flower cuts arrays into objects of 5 MB; a message of 100 MB passes even in one piece
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
                         b"proxy-connection", b"te", b"trailer", b"upgrade", b"host", b"expect"})  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What the gateway says itself, in place of SuperLink. document: no secrets, no inner addresses."""

    status: int
    document: Mapping[str, object]


def node_key_header(node: bytes) -> bytes:
    """The value of Flower's public-key header for a node key (SPKI, DER): base64 of its PEM."""
    key = load_spki(node, ec.SECP384R1)
    return base64.b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def own_answer(request: h11.Request, hello: Mapping[str, object]) -> Answer | None:
    """The gateway's answer to what is asked of itself; None: it is for SuperLink, let `judge` decide.

    Args:
        hello: who the member is to the gateway, its time and its release.
    """
    asked = request.method, request.target
    if asked == (b"GET", HELLO):
        return Answer(200, hello)
    if asked == (b"GET", TRANSFER):
        return Answer(200, {"filler": "." * TRANSFER_BYTES})
    if asked == (b"POST", TRANSFER):
        lengths = [value for name, value in request.headers if name == b"content-length"]
        if len(lengths) != 1:
            return _denied(411, "expected a Content-Length")
        if int(lengths[0]) > MAX_TRANSFER_BYTES:  # h11 has checked that these are digits
            return _denied(413, f"expected at most {MAX_TRANSFER_BYTES} bytes")
        return Answer(200, {"bytes": int(lengths[0])})
    return None


def judge(request: h11.Request, *, node_key: bytes) -> Answer | None:
    """Whether a request may go to SuperLink; None if it may.

    Args:
        node_key: `node_key_header` of the member whose certificate opened the connection.
    """
    if request.target not in FLEET_ROUTES:
        return _denied(403, "only Flower's fleet routes are served here")
    if request.method != b"POST":
        return _denied(405, "expected POST")
    lengths = [value for name, value in request.headers if name == b"content-length"]
    if any(name == b"transfer-encoding" for name, _ in request.headers) or len(lengths) != 1:
        return _denied(411, "expected a Content-Length")
    if int(lengths[0]) > MAX_BODY_BYTES:  # h11 has checked that these are digits
        return _denied(413, f"the message is larger than {MAX_BODY_BYTES} bytes; send it in smaller objects")
    if any(name in (b"upgrade", b"expect") for name, _ in request.headers):
        return _denied(400, "expected a plain request")
    keys = [value for name, value in request.headers if name == NODE_KEY_HEADER]
    if len(keys) != 1 or not hmac.compare_digest(keys[0], node_key):
        return _denied(403, "the node key is not the one that was enrolled with this certificate")
    return None


def _denied(status: int, words: str) -> Answer:
    return Answer(status, {"words": words})


def passed_on(message: h11.Request | h11.Response) -> list[tuple[bytes, bytes]]:
    """Headers that go through: all but those between two neighbours, and those that only the gateway may set."""
    return [(name, value) for name, value in message.headers
            if name not in _HOP_BY_HOP and not name.startswith((b"mammofed-", b"x-forwarded-"))]  # fmt: skip
