"""The decision about one request head, without a socket."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.enrolment.http_guard import FLEET_ROUTES, MAX_BODY_BYTES, judge, node_key_header, passed_on
from shared_model.certificates import new_node_key, new_tls_key, spki
from shared_model.errors import EnrolmentError

KEY = node_key_header(spki(new_node_key().public_key()))


def request(
    target: bytes = b"/v1/fleet/get-run", method: bytes = b"POST", length: int = 1, key: bytes = KEY
) -> h11.Request:
    headers = [(b"Host", b"x"), (b"Content-Length", str(length).encode()), (b"flwr-public-key", key)]
    return h11.Request(method=method, target=target, headers=headers)


def test_each_fleet_route_passes() -> None:
    assert [judge(request(route), node_key=KEY) for route in FLEET_ROUTES] == [None] * 12


@given(st.binary(min_size=1, max_size=40).map(lambda data: b"/v1/fleet/" + data))
def test_no_other_target_passes(target: bytes) -> None:
    try:
        asked = request(target)
    except h11.LocalProtocolError:
        return  # h11 would not have read it
    denied = judge(asked, node_key=KEY)
    assert (denied is None) == (target in FLEET_ROUTES)


def test_the_limit_of_a_body_is_exact() -> None:
    assert judge(request(length=MAX_BODY_BYTES), node_key=KEY) is None
    denied = judge(request(length=MAX_BODY_BYTES + 1), node_key=KEY)
    assert denied is not None and denied.status == 413 and str(MAX_BODY_BYTES) in str(denied.document["words"])
    assert MAX_BODY_BYTES > 100e6, "a message of 100 MB passes"


@pytest.mark.parametrize("position", range(0, len(KEY), 7))
def test_each_byte_of_the_node_key_counts(position: int) -> None:
    other = KEY[:position] + bytes([KEY[position] ^ 1]) + KEY[position + 1 :]
    denied = judge(request(key=other), node_key=KEY)
    assert denied is not None and denied.status == 403


def test_the_header_is_what_flower_sends() -> None:
    from base64 import b64encode

    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    from server.enrolment.http_guard import NODE_KEY_HEADER

    key = new_node_key().public_key()
    assert b64encode(public_key_to_bytes(key)) == node_key_header(spki(key))
    assert FLEET_HTTP_PUBLIC_KEY_HEADER.encode() == NODE_KEY_HEADER


def test_a_key_of_another_kind_is_no_node_key() -> None:
    with pytest.raises(EnrolmentError):
        node_key_header(spki(new_tls_key().public_key()))


def test_headers_between_neighbours_stay_there() -> None:
    message = h11.Request(method="POST", target="/", headers=[
        ("Host", "x"), ("Connection", "close"), ("TE", "trailers"), ("Mammofed-Site", "south"),
        ("X-Forwarded-For", "1.1.1.1"), ("flwr-timestamp", "now"), ("Content-Length", "0"),
    ])  # fmt: skip
    assert dict(passed_on(message)) == {b"flwr-timestamp": b"now", b"content-length": b"0"}
