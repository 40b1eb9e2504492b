"""The invitation as it travels, and the documents of enrolment."""

from __future__ import annotations

import json

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.certificates import Member, Role, der, loopback_credentials, make_csr, new_node_key, new_tls_key, spki
from shared_model.enrolment import (
    MAX_DOCUMENT_BYTES,
    EnrolReply,
    EnrolRequest,
    Invite,
    RenewRequest,
    check_proof,
    decode,
    enrol_request,
    proof_message,
    renew_request,
)  # fmt: skip
from shared_model.errors import EnrolmentError

CA = der(x509.load_pem_x509_certificate(loopback_credentials(now=1.7e9)[1]))
NORTH = Member("north-1_a", Role.EVALUATOR)
NODE = new_node_key()
CSR = make_csr(new_tls_key(), NORTH)


def test_an_invitation_arrives_as_it_was_sent() -> None:
    invite = Invite(NORTH, CA)
    assert Invite.parse(invite.text) == invite
    assert invite.text.startswith("mfi1.north-1_a.evaluator.") and len(invite.text) < 1000
    mail = "\r\n  ".join(invite.text[place : place + 72] for place in range(0, len(invite.text), 72))
    assert Invite.parse(f"\n{mail} \n") == invite
    assert Invite(NORTH, CA).secret != invite.secret and len(invite.secret) * 8 >= 128


def test_every_slip_of_the_hand_is_found() -> None:
    text = Invite(NORTH, CA).text
    for place in range(len(text)):
        for changed in (text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :],
                        text[:place] + text[place + 1 :]):  # fmt: skip
            with pytest.raises(EnrolmentError, match="incomplete or mistyped") as raised:
                Invite.parse(changed)
            assert text.split(".")[3][:10] not in str(raised.value)


@given(st.text(max_size=200))
@settings(max_examples=50)
def test_any_other_text_is_no_invitation(text: str) -> None:
    with pytest.raises(EnrolmentError):
        Invite.parse(text)


def test_documents_survive_and_unknown_fields_do_not() -> None:
    documents = (enrol_request(b"s" * 20, ca=CA, csr=CSR, node_key=NODE), renew_request(ca=CA, csr=CSR, node_key=NODE),
                 EnrolReply(status="pending"), EnrolReply(status="issued", certificate=CA))  # fmt: skip
    for document in documents:
        data = document.encode()
        assert decode(data, EnrolRequest, RenewRequest, EnrolReply) == document
        fields = json.loads(data)
        for changed in ({**fields, "more": 1}, {**fields, next(iter(fields)): 7}, [fields]):
            with pytest.raises(EnrolmentError, match="not a document"):
                decode(json.dumps(changed).encode(), EnrolRequest, RenewRequest, EnrolReply)
        with pytest.raises(EnrolmentError):
            decode(data + b" " * MAX_DOCUMENT_BYTES, type(document))


@pytest.mark.parametrize("text", ["not base64!", "AA", "A===", "éé", "AAAA\n"])
def test_base64_is_strict(text: str) -> None:
    with pytest.raises(EnrolmentError):
        decode(json.dumps({"kind": "renew", "csr": text, "proof": "AAAA"}).encode(), RenewRequest)


def test_a_proof_is_for_one_purpose_coordinator_request_and_invitation() -> None:
    enrol = enrol_request(b"s" * 20, ca=CA, csr=CSR, node_key=NODE)
    node = spki(NODE.public_key())
    check_proof(enrol, node=node, ca=CA)
    renew = renew_request(ca=CA, csr=CSR, node_key=NODE)
    check_proof(renew, node=node, ca=CA)
    for request, key, ca in (
        (enrol, spki(new_node_key().public_key()), CA), (enrol, node, CA + b"x"),
        (enrol.model_copy(update={"secret": b"t" * 20}), node, CA),
        (enrol.model_copy(update={"csr": CSR + b"x"}), node, CA),
        (renew.model_copy(update={"proof": enrol.proof}), node, CA),
        (enrol.model_copy(update={"proof": renew.proof}), node, CA),
    ):  # fmt: skip
        with pytest.raises(EnrolmentError, match="has not signed"):
            check_proof(request, node=key, ca=ca)
    assert proof_message("enrol", ca=b"ab", csr=b"c") != proof_message("enrol", ca=b"a", csr=b"bc")
