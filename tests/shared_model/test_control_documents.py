"""Documents of the control service: whatever arrives is one of them or a refusal in words, within bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shared_model.control as module
from shared_model.certificates import Role
from shared_model.control import (
    MAX_REFUSAL_BYTES,
    MAX_REPLY_BYTES,
    BeatReply,
    BeatRequest,
    Document,
    DocumentsReply,
    DocumentsRequest,
    LeaveReply,
    LeaveRequest,
    MemberKey,
    PartyAnswer,
    PartyLog,
    Refusal,
    StudyEvent,
    TrainerState,
    WatchRequest,
)  # fmt: skip
from shared_model.errors import ControlError, EnrolmentError, MammoFedError, StorageError

SHA, LOG = "ab" * 32, "cd" * 16
GOOD: dict[type[Document], Document] = {
    type(document): document
    for document in (
        MemberKey(site="north", role=Role.SITE, node=b"\x00\xff"),
        DocumentsRequest(have=(SHA,)),
        DocumentsReply(offered=(SHA,), protocols=(b"file",), members=()),
        TrainerState(up=True, device="cpu"),
        PartyLog(party="courier", owner="north-courier", log=LOG, key=SHA, recorded=0),
        BeatRequest(time=1.0, release="0.1.0", trainer=TrainerState(up=False)),
        PartyAnswer(party="trainer", since=3),
        BeatReply(time=1.0, release="0.1.0", notices=("a",)),
        WatchRequest(after={"quick": 3}),
        StudyEvent(study="quick", number=1, time=1.0, kind="finished", severity="info", data={"a": 1.0, "b": "c"}),
        LeaveRequest(reason="over"), LeaveReply(),
        Refusal(kind="control", reason="clock", problem="wrong"),
    )
}  # fmt: skip
KINDS = sorted(GOOD, key=lambda kind: kind.__name__)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=10,
)  # fmt: skip


def test_every_kind_of_document_is_tried_here() -> None:
    there = {kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Document)}
    assert there - {Document} == set(GOOD)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_comes_back_as_it_was(kind: type[Document]) -> None:
    assert kind.decode(GOOD[kind].encode()) == GOOD[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_is_refused(kind: type[Document]) -> None:
    values = json.loads(GOOD[kind].encode())
    with pytest.raises(ControlError, match=f"not a {kind.__name__}") as told:
        kind.decode(json.dumps(values | {"run": "rm"}).encode())
    assert told.value.reason == "not_a_document" and "run" in str(told.value.found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(data=st.binary(max_size=200), value=JSON)
@example(data=b"[" * 100_000, value=None)
@example(data=b"", value=float("inf"))  # was taken as a time, and could not be handed on
def test_whatever_arrives_is_refused_in_words_or_is_a_document(kind: type[Document], data: bytes, value: Any) -> None:
    """Random bytes; random JSON; a good document with one field of another kind."""
    values = json.loads(GOOD[kind].encode())
    changed = [json.dumps(values | {name: value}).encode() for name in values]
    for text in (data, json.dumps(value).encode(), *changed):
        try:
            document = kind.decode(text)
        except ControlError as error:
            assert len(str(error)) < 1000
        else:
            assert kind.decode(document.encode()) == document


def test_what_is_longer_than_the_bound_is_not_parsed() -> None:
    with pytest.raises(ControlError, match="bytes"):
        LeaveRequest.decode(b" " * (MAX_REPLY_BYTES + 1))


@pytest.mark.parametrize("error", [
    EnrolmentError("p" * 5000, found="f" * 5000, expected="e" * 5000, remedy="r" * 5000),
    StorageError("/srv/hospital/path could not be written", found="/srv"),
])  # fmt: skip
def test_a_refusal_is_short_and_names_no_path(error: MammoFedError) -> None:
    encoded = Refusal.of(error).encode()
    assert len(encoded) <= MAX_REFUSAL_BYTES and b"/srv" not in encoded


def test_a_refusal_of_a_coordinator_that_makes_up_reasons_stays_one_of_ours() -> None:
    odd = Refusal(kind="certificate", reason="\x1b[2Jmade up", problem="p\nq")
    error = odd.error()
    assert (str(error), getattr(error, "reason", "")) == ("p q", "unknown")
