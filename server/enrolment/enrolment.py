"""Invite, enrol, confirm, renew, revoke; called by the control service (`answer`) and by the operator's commands.

Nothing is served before a human has compared the fingerprints of both keys: until `confirm`, a member is pending, has
no certificate, and the gateway does not know it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.enrolment.authority import Authority
from server.enrolment.registry import Enrolled, MemberState, Registry
from shared_model.certificates import Member, der, read_csr, spki
from shared_model.enrolment import (
    COURIER_SUFFIX,
    EnrolReply,
    EnrolRequest,
    Fingerprint,
    Invite,
    RenewRequest,
    check_proof,
    decode,
    key_words,
    secret_sha256,
)  # fmt: skip
from shared_model.errors import EnrolmentError
from shared_model.signed_protocol import Coordinator

INVITE_HOURS = 72.0  # a weekend between the coordinator's mail and the site's IT
MAX_INVITE_HOURS = 24.0 * 14


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A member that waits for its confirmation. words: `certificate` and `node` -> six words to compare by phone."""

    member: Member
    words: Mapping[str, str]


class Enrolment:
    """The coordinator's side of enrolment.

    Args:
        fingerprint: public key -> six words; the site shows the same.
        coordinator: who signs protocols and requests here; the site learns it with its certificate. None: nobody yet.
        dropped: called with the name of a site that was revoked, so that this process ends its live connections; other
            processes see it in the registry.
    """

    def __init__(
        self, authority: Authority, registry: Registry, *, fingerprint: Fingerprint,
        coordinator: Coordinator | None = None, clock: Callable[[], float] = time.time,
        dropped: Callable[[str], None] = lambda site: None,
    ) -> None:  # fmt: skip
        self._coordinator = coordinator
        self._authority, self._registry, self._clock = authority, registry, clock
        self._fingerprint, self._dropped = fingerprint, dropped

    # --- the operator's commands ---

    def invite(self, member: Member, *, hours: float = INVITE_HOURS) -> Invite:
        """A new invitation, single-use; `Invite.text` is shown once and only its hash is kept.

        Raises:
            EnrolmentError: the name is enrolled already, or the time is out of bounds.
        """
        if not 0 < hours <= MAX_INVITE_HOURS:
            raise EnrolmentError("an invitation is short-lived", found=f"{hours} hours",
                                 expected=f"more than 0, at most {MAX_INVITE_HOURS:g}")  # fmt: skip
        if member.site.endswith(COURIER_SUFFIX):
            raise EnrolmentError("not a name for a site", found=member.site, expected=f"no name in {COURIER_SUFFIX}",
                                 remedy="a site's courier has such a name; choose another")  # fmt: skip
        invitation = Invite(member, self._authority.ca_der)
        self._registry.invite(member, invitation.sha256, expires=self._clock() + hours * 3600)
        return invitation

    def pending(self) -> list[Pending]:
        """Who waits for a confirmation, in the order of names."""
        waiting = (there for there in self._registry.members() if there.state is MemberState.PENDING)
        return [Pending(member=there.member, words=self.words(there)) for there in waiting]

    def words(self, there: Enrolled) -> dict[str, str]:
        """Six words for each key that a member enrolled with."""
        return key_words(self._fingerprint, tls=there.tls, node=there.node)

    def confirm(self, site: str, words: Mapping[str, str]) -> None:
        """Confirm a member after its words were read over the phone.

        Args:
            words: as the *site* read them, `certificate` and `node`; spaces and capitals do not matter.

        Raises:
            EnrolmentError: other words: then it is not this site, or somebody is in between. Or not pending.
        """
        there = self._registry.member(site)
        expected = self.words(there)
        same = [secrets.compare_digest(_plain(words.get(use, "")), _plain(right)) for use, right in expected.items()]
        if not all(same):
            wrong = ", ".join(use for use, right in zip(expected, same, strict=True) if not right)
            raise EnrolmentError(f"the fingerprints of {site} are not the same at both ends", found=f"differs: {wrong}",
                                 expected="the same six words for each key",
                                 remedy=f"read them again; if they still differ, revoke {site}: somebody else has "
                                 "used its invitation")  # fmt: skip
        self._registry.confirm(site, node=there.node, tls=there.tls)

    def revoke(self, site: str, *, reason: str = "") -> None:
        """Shut a member out: at once for new connections, and live ones are dropped.

        Raises:
            EnrolmentError: there is none of that name.
        """
        self._registry.revoke(site, reason=reason)
        self._dropped(site)

    # --- what the control service is sent ---

    def answer(self, request: bytes, *, peer: bytes | None = None) -> bytes:
        """Answer one document of a site.

        Args:
            peer: the certificate (DER) of the TLS connection, where it had one.

        Raises:
            EnrolmentError, CertificateError: refused; says why in words that may go back to the sender.
            StorageError: our disk refuses; the site tries again later.
        """
        document = decode(request, EnrolRequest, RenewRequest)
        if isinstance(document, EnrolRequest):
            return self._enrol(document).encode()
        if peer is None:
            raise EnrolmentError("a renewal needs the old certificate", remedy="connect with it, or enrol again")
        assert isinstance(document, RenewRequest)
        return self._renew(document, peer).encode()

    def _enrol(self, request: EnrolRequest) -> EnrolReply:
        digest = secret_sha256(request.secret)
        member = self._registry.invited(digest)
        key = read_csr(request.csr, member)
        check_proof(request, node=request.node, ca=self._authority.ca_der)
        # ECDSA signatures differ each time they are made, keys and names do not
        there = self._registry.redeem(digest, request=request.node + spki(key), node=request.node, tls=spki(key),
                                      csr=request.csr)  # fmt: skip
        if there.state is MemberState.PENDING:
            return EnrolReply(status="pending")
        certificate = self._registry.certificate_for(member.site, spki(key), lambda: self._authority.issue(member, key))
        return EnrolReply(status="issued", certificate=der(certificate), coordinator=self._coordinator)

    def _renew(self, request: RenewRequest, peer: bytes) -> EnrolReply:
        admitted = self._registry.admit(peer)
        key = read_csr(request.csr, admitted.member)
        check_proof(request, node=admitted.node, ca=self._authority.ca_der)
        certificate = self._registry.certificate_for(
            admitted.member.site, spki(key), lambda: self._authority.issue(admitted.member, key), asked_with=peer
        )
        return EnrolReply(status="issued", certificate=der(certificate), coordinator=self._coordinator)


def _plain(words: str) -> bytes:
    return " ".join(words.lower().replace("-", " ").split()).encode()
