"""What a secure sum excludes in a protocol, the terms that follow from one, and the messages that carry its steps."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from server.rounds.sums import forget_sums, kept_sum
from shared_model.errors import MessageError, PrivacyError, ProtocolError
from shared_model.messages import MAX_DOCUMENT_CHARS, Frame, SecureSumReply, SecureSumRequest, decode, encode
from shared_model.secagg.documents import MAX_DOCUMENT_BYTES
from shared_model.secagg.terms import (
    COUNTS,
    SCORES,
    UPDATE,
    check_terms,
    coefficients,
    least_bound,
    quantities,
    subject_of,
    terms_of,
)
from shared_model.signed_request import SignedRequest, bare
from shared_model.signing import SigningKey
from shared_model.strategies import SECURE_SUM_MATRIX, Strategy
from shared_model.tensors import MASKED, pack, unpack
from tests import fake_grid as fake
from tests.signed import COORDINATOR, KEY, NAME

SUMMED = {"federation__secure_sum": "masked"}
KEYS = {site: SigningKey.generate().public for site in fake.SITES}


def summed(**changes: Any) -> fake.Protocol:
    return fake.make_protocol(**SUMMED, **changes)


def test_the_matrix_has_every_strategy() -> None:
    assert set(SECURE_SUM_MATRIX) == set(get_args(Strategy))


@pytest.mark.parametrize("strategy", sorted(SECURE_SUM_MATRIX))
def test_what_a_secure_sum_excludes_is_refused_in_words(strategy: str) -> None:
    changes = {**SUMMED, **fake.STRATEGIES[strategy]}
    why = SECURE_SUM_MATRIX[strategy]
    if not why:
        assert fake.make_protocol(**changes).summed
        return
    with pytest.raises(ProtocolError, match=why):
        fake.make_protocol(**changes)


WEIGHTS = [{"name": n, "patients": 40, "weight": w} for n, w in zip(fake.SITES, (98.0, 1.0, 1.0, 1.0), strict=True)]


@pytest.mark.parametrize(("changes", "words"), [
    ({"federation__quorum": 2}, "a quorum of 2"),
    ({"federation__quorum": 2, "federation__sites_per_round": 2}, "fewer than 3"),
    ({"federation__sites": WEIGHTS}, "97% of the weight"),
    ({"federation__secure_sum": "yes"}, "federation.secure_sum"),
    ({"federation__secure_sum": "none", "privacy__metrics": "joint"}, "needs federation.secure_sum=masked"),
])  # fmt: skip
def test_a_sum_that_hides_nothing_is_no_protocol(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        fake.make_protocol(**{**SUMMED, **changes})


def test_what_may_be_summed_stands_in_the_protocol() -> None:
    assert quantities(fake.make_protocol()) == ()
    assert quantities(summed()) == (UPDATE,)
    assert quantities(summed(privacy__metrics="joint")) == (UPDATE, SCORES)


def terms(protocol: fake.Protocol, **changes: Any) -> Any:
    values = {"what": UPDATE, "round_number": 2, "attempt": 1, "keys": KEYS, "coordinator": KEY.public, "length": 5,
              "bound": 1.0} | changes  # fmt: skip
    return terms_of(protocol, **values)


def test_the_terms_of_a_sum_follow_from_the_protocol_and_are_checked_against_it() -> None:
    protocol = summed()
    made = terms(protocol)
    assert made.subject == subject_of(protocol, what=UPDATE, round_number=2)
    assert made.coefficients == coefficients(protocol, UPDATE) == {"ash": 1 / 7, "birch": 2 / 7, "cedar": 3 / 7,
                                                                   "dogwood": 1 / 7}  # fmt: skip
    check_terms(made, protocol, what=UPDATE, round_number=2, attempt=1)
    for wrong in ({"round_number": 3}, {"attempt": 2}, {"what": SCORES}):
        with pytest.raises(PrivacyError):
            check_terms(made, protocol, **({"what": UPDATE, "round_number": 2, "attempt": 1} | wrong))
    with pytest.raises(PrivacyError, match="another protocol"):
        check_terms(made, summed(seed=99), what=UPDATE, round_number=2, attempt=1)
    assert set(terms(protocol, what=SCORES).coefficients.values()) == {1.0}


@pytest.mark.parametrize("what", [SCORES, COUNTS])
def test_counts_have_a_bound_that_no_site_s_women_reach(what: str) -> None:
    """A smaller one is a question about single sites: who is beyond it falls out of the sum."""
    protocol = summed()
    least = least_bound(protocol, what)
    assert least == 2 * max(site.patients for site in protocol.federation.sites)
    check_terms(terms(protocol, what=what, bound=least), protocol, what=what, round_number=2, attempt=1)
    with pytest.raises(PrivacyError, match="a bound that a site's women may reach"):
        check_terms(terms(protocol, what=what, bound=least - 1), protocol, what=what, round_number=2, attempt=1)


@pytest.mark.parametrize("names", [("ash",), ("ash", "birch"), ("ash", "birch", "oak")])
def test_no_terms_over_fewer_than_three_or_over_strangers(names: tuple[str, ...]) -> None:
    keys = {name: SigningKey.generate().public for name in names}
    with pytest.raises(ProtocolError, match="no secure sum can be opened"):
        terms(summed(), keys=keys)


def request(document: bytes = b'{"a":1}', **changes: Any) -> SecureSumRequest:
    values = {"study": "fake", "protocol_sha256": "ab" * 32, "what": UPDATE, "round": 1, "attempt": 1, "asked": 1,
              "step": "keys"} | changes  # fmt: skip
    return SecureSumRequest.carrying(document, **values)


def test_the_envelope_names_the_document_by_its_hash_and_covers_all_else() -> None:
    assert MAX_DOCUMENT_CHARS == MAX_DOCUMENT_BYTES
    large = request(b'{"a":"' + b"x" * 500_000 + b'"}')
    signed = SignedRequest.sign(large, site="ash", release="0.1.0", name=NAME, key=KEY)
    data = signed.to_json()
    assert len(data) < 1000 and signed.request == bare(large) != large
    read = SignedRequest.from_json(data, coordinator=COORDINATOR, site="ash", release="0.1.0")
    assert read.slot == "secure-sum/update/1/1/keys"
    slots = {SignedRequest.sign(request(**change), site="ash", release="0.1.0", name=NAME, key=KEY).slot
             for change in ({}, {"round": 2}, {"attempt": 2}, {"step": "mask"}, {"what": SCORES})}  # fmt: skip
    assert len(slots) == 5
    assert large.opened().startswith(b'{"a":"xxx')
    with pytest.raises(MessageError, match="not the one that its request names"):
        large.model_copy(update={"document": '{"a":"y"}'}).opened()


def test_masked_words_cross_to_the_bit_and_are_the_only_tensor_that_is_not_float32() -> None:
    words = np.arange(7, dtype=np.uint32) * 613_566_757 + 0x7F800001  # among them what floats call a signalling NaN
    reply = SecureSumReply(site="ash", study="fake", what=UPDATE, round=1, attempt=1, step="mask", document="{}")
    found = decode(encode(Frame(reply, {MASKED: words}))).arrays[MASKED]  # type: ignore[dict-item]
    assert found.dtype == np.uint32 and np.array_equal(found, words)
    assert np.array_equal(unpack(pack({MASKED: words}))[MASKED], words)  # type: ignore[dict-item]
    from safetensors.numpy import save

    for name, array in ((MASKED, words.astype(np.float32)), ("head.weight", words)):
        with pytest.raises(MessageError, match="wrong type"):
            unpack(save({name: array}))


def test_sums_of_closed_rounds_are_forgotten(tmp_path: Any) -> None:
    for number, attempt in ((1, 1), (2, 1), (2, 2), (3, 1)):
        path = kept_sum(tmp_path, UPDATE, number, attempt)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    forget_sums(tmp_path, before=3)
    assert [path.name for path in (tmp_path / "sums").iterdir()] == ["update-0003-0001.sum"]
