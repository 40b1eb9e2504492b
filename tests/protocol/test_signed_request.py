"""A signed request: for one site, one round, one set of weights; the same again is known, another body is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.audit import AuditLog, verify
from shared_model.errors import MessageError, SignatureError, StorageError
from shared_model.messages import EvaluateRequest, TrainRequest
from shared_model.signed_protocol import Coordinator
from shared_model.signed_request import MAX_ENVELOPE_BYTES, RequestBook, SignedRequest
from shared_model.signing import Purpose, SigningKey

KEY, SITE_KEY = SigningKey.generate(), SigningKey.generate()
WHO = Coordinator.of("consortium", KEY.public)
TRAIN = TrainRequest(study="quick", protocol_sha256="a" * 64, round=3, attempt=1, weights_sha256="b" * 64)
JUDGE = EvaluateRequest(study="quick", protocol_sha256="a" * 64, round=9, weights_sha256="b" * 64, scope="test",
                        thresholds={"z": 0.25, "a": 0.5}, temperature=1.5)  # fmt: skip


def sign(request: TrainRequest | EvaluateRequest = TRAIN, *, site: str = "north", **changes: Any) -> SignedRequest:
    request = request.model_copy(update=changes)
    return SignedRequest.sign(request, site=site, release="0.1.0", name="consortium", key=KEY)


def read(data: bytes, *, site: str = "north", release: str = "0.1.0", coordinator: Coordinator = WHO) -> SignedRequest:
    return SignedRequest.from_json(data, coordinator=coordinator, site=site, release=release)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog(tmp_path / "audit.jsonl", owner="north", key=SITE_KEY) as log:
        yield log


@pytest.mark.parametrize("request_", [TRAIN, JUDGE], ids=["train", "evaluate"])
def test_what_was_signed_comes_back(request_: TrainRequest | EvaluateRequest) -> None:
    signed = read(sign(request_).to_json())
    assert signed.request == request_ and type(signed.request) is type(request_)
    assert signed == sign(request_)


@settings(max_examples=200)
@given(which=st.sampled_from([TRAIN, JUDGE]), data=st.data())
def test_any_changed_inserted_or_removed_byte_is_found(
    which: TrainRequest | EvaluateRequest, data: st.DataObject
) -> None:
    good = sign(which).to_json()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 3)))
    bad = good[:start] + data.draw(st.binary(max_size=3)) + good[end:]
    if bad != good:
        with pytest.raises((MessageError, SignatureError)):
            read(bad)


def test_each_changed_byte_is_found() -> None:
    good = sign().to_json()
    for at in range(len(good)):
        for mask in (0x01, 0x20, 0x80):
            bad = bytearray(good)
            bad[at] ^= mask
            with pytest.raises((MessageError, SignatureError)):
                read(bytes(bad))


@pytest.mark.parametrize(("field", "value"), [
    ("study", "other"), ("protocol_sha256", "c" * 64), ("round", 4), ("attempt", 2), ("weights_sha256", "c" * 64),
    ("correction_sha256", "c" * 64),
])  # fmt: skip
def test_the_signature_covers_each_field_of_the_request(field: str, value: object) -> None:
    assert sign(**{field: value}).signature != sign().signature
    moved = sign(**{field: value}).model_copy(update={"signature": sign().signature})
    with pytest.raises(SignatureError):
        read(moved.to_json())


def test_it_is_for_one_site_one_release_and_from_one_coordinator() -> None:
    data = sign().to_json()
    with pytest.raises(MessageError, match="another site"):
        read(data, site="south")
    with pytest.raises(MessageError, match="another release"):
        read(data, release="0.2.0")
    with pytest.raises(SignatureError, match="not of the coordinator"):
        read(data, coordinator=Coordinator.of("another", KEY.public))
    with pytest.raises(SignatureError, match="does not fit"):
        read(data, coordinator=Coordinator.of("consortium", SITE_KEY.public))
    turned = sign().model_copy(update={"site": "south"})
    with pytest.raises(SignatureError):
        read(turned.to_json(), site="south")


def test_a_signature_for_another_purpose_is_none() -> None:
    signed = sign()
    wrong = signed.model_copy(update={"signature": KEY.sign(Purpose.PROTOCOL, signed.payload())})
    with pytest.raises(SignatureError):
        read(wrong.to_json())


def sealed(values: dict[str, Any]) -> bytes:
    """An envelope with a good signature over whatever is in it."""
    body = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    signature = KEY.sign(Purpose.REQUEST, body)
    return json.dumps(values | {"signature": signature}, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("change", [
    {"extra": 1}, {"schema_version": 2}, {"site": "../x"}, {"request": {"kind": "describe"}}, {"request": None},
    {"request": TRAIN.model_dump() | {"url": "http://x"}}, {"request": TRAIN.model_dump() | {"round": 0}},
    {"request": TRAIN.model_dump() | {"round": "3"}}, {"request": TRAIN.model_dump() | {"round": 3.0}},
    {"request": TRAIN.model_dump(exclude={"correction_sha256"})},
])  # fmt: skip
def test_even_under_a_good_signature_only_the_declared_schema_passes(change: dict[str, Any]) -> None:
    values = sign().model_dump(mode="json", exclude={"signature"})
    assert read(sealed(values)).request == TRAIN
    with pytest.raises((MessageError, SignatureError)):
        read(sealed(values | change))


def test_the_envelope_has_one_form() -> None:
    good = sign().to_json()
    for other in (good + b"\n", b" " + good, json.dumps(json.loads(good)).encode(), good[:-1] + b"," + good[1:],
                  good.replace(b'"round":3', b'"round":3.0'), good.replace(b"quick", b"\\u0071uick")):  # fmt: skip
        with pytest.raises(MessageError, match="another form"):
            read(other)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 10_000, b"x" * (MAX_ENVELOPE_BYTES + 1)])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        read(data)
    with pytest.raises(MessageError):
        sign(site="../x")


def test_the_same_request_is_known_again_also_after_a_restart(log: AuditLog, tmp_path: Path) -> None:
    book = RequestBook(log)
    assert [book.admit(sign()), book.admit(sign()), book.admit(sign(attempt=2))] == [True, False, True]
    log.close()
    with AuditLog(tmp_path / "audit.jsonl", owner="north", key=SITE_KEY) as again:
        book = RequestBook(again)
        assert [book.admit(sign()), book.admit(sign(attempt=2)), book.admit(sign(round=4))] == [False, False, True]
        assert again.sequence == 4


@pytest.mark.parametrize("restarted", [False, True])
def test_the_same_slot_with_another_body_is_refused_and_both_are_kept(log: AuditLog, restarted: bool) -> None:
    book = RequestBook(log)
    book.admit(sign())
    if restarted:
        book = RequestBook(log)
    for _ in range(3):
        for change in ({"weights_sha256": "c" * 64}, {"correction_sha256": "c" * 64}):
            with pytest.raises(MessageError, match="another body"):
                (RequestBook(log) if restarted else book).admit(sign(**change))
    assert book.admit(sign()) is False
    kept = [entry for entry in log.entries() if entry.kind in ("request_admitted", "request_refused")]
    assert [entry.kind for entry in kept] == ["request_admitted", "request_refused"]  # one proof, not a full disk
    for entry in kept:  # either is proved by the coordinator's own signature
        assert read(str(entry.fields["envelope"]).encode()).slot == "train/3/1"
    assert verify(log.path).entries == 3


def test_test_is_opened_once_and_selection_as_often_as_liked(log: AuditLog) -> None:
    book = RequestBook(log)
    assert book.admit(sign(JUDGE)) and book.admit(sign(JUDGE, image_only=True))
    with pytest.raises(MessageError, match="another body"):
        book.admit(sign(JUDGE, round=10))
    for weights in ("c" * 64, "d" * 64):
        assert book.admit(sign(JUDGE, scope="selection", weights_sha256=weights))


def test_protocols_do_not_share_slots(log: AuditLog) -> None:
    book = RequestBook(log)
    assert book.admit(sign()) and book.admit(sign(protocol_sha256="c" * 64))


def test_nothing_is_taken_that_is_not_on_the_disk(log: AuditLog) -> None:
    book = RequestBook(log)
    log.close()
    with pytest.raises(StorageError):
        book.admit(sign())
    with pytest.raises(StorageError):
        book.admit(sign())
