"""Frames on the wire: the envelope beside the fields, the audit messages' bounds, and headers that are none of ours."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from shared_model.audit.heads import MAX_STATEMENT_BYTES
from shared_model.errors import MessageError
from shared_model.messages import (
    MAX_ENVELOPE_BYTES,
    MAX_STATEMENT_CHARS,
    AuditReply,
    AuditRequest,
    DescribeRequest,
    Frame,
    decode,
    encode,
    parse_fields,
    parse_message,
)

WHO = DescribeRequest()
REPLY = {"kind": "audited", "owner": "north", "key": "ab" * 32, "log": "cd" * 16, "statement": "{}", "recorded": 0}


def framed(metadata: Any) -> bytes:
    """A safetensors file without tensors whose header holds `metadata`, whatever it is."""
    header = json.dumps({"__metadata__": metadata}).encode()
    return len(header).to_bytes(8, "little") + header


@given(st.none() | st.text(st.characters(max_codepoint=127), max_size=300))
def test_an_envelope_comes_back_as_it_was(text: str | None) -> None:
    envelope = None if text is None else text.encode("ascii")
    weights = {"w": np.arange(3, dtype=np.float32)}
    frame = decode(encode(Frame(WHO, weights, envelope)))
    assert (frame.message, frame.envelope) == (WHO, envelope)
    np.testing.assert_array_equal(frame.arrays["w"], weights["w"])


def test_a_message_without_an_envelope_has_the_bytes_that_it_always_had() -> None:
    assert encode(Frame(WHO)) == save({}, metadata={"message": '{"kind":"describe"}'})


@pytest.mark.parametrize("envelope", [b"x" * (MAX_ENVELOPE_BYTES + 1), "\u00e9".encode()])
def test_an_envelope_out_of_bounds_is_neither_written_nor_read(envelope: bytes) -> None:
    with pytest.raises(MessageError, match="envelope"):
        encode(Frame(WHO, {}, envelope))
    with pytest.raises(MessageError, match="envelope"):
        decode(framed({"message": WHO.model_dump_json(), "envelope": envelope.decode()}))


@pytest.mark.parametrize(
    "metadata",
    [None, [], "message", {}, {"message": 1}, {"message": None}, {"envelope": "x"}, {"message": "{}", "more": "x"},
     {"message": WHO.model_dump_json(), "envelope": None}, {"message": WHO.model_dump_json(), "envelope": {}}],
)  # fmt: skip
def test_a_header_with_anything_else_is_refused(metadata: Any) -> None:
    with pytest.raises(MessageError):
        decode(framed(metadata))
    with pytest.raises(MessageError):
        parse_fields(framed(metadata))


def test_the_audit_messages_are_declared_and_bounded() -> None:
    assert MAX_STATEMENT_BYTES <= MAX_STATEMENT_CHARS
    for message in (AuditRequest(since=3, statement="{}"), AuditReply.model_validate(REPLY)):
        assert decode(encode(Frame(message))).message == message
    for wrong in (
        {"kind": "audit", "since": -1}, {"kind": "audit", "since": 0, "statement": "x" * (MAX_STATEMENT_CHARS + 1)},
        {**REPLY, "key": "ab"}, {**REPLY, "log": "x" * 32}, {**REPLY, "owner": "../x"}, {**REPLY, "recorded": 2**53},
        {**REPLY, "entries": []},
    ):  # fmt: skip
        with pytest.raises(MessageError):
            parse_message(json.dumps(wrong))
