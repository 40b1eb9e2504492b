"""The coordinator's side of the secure sum: collects what sites send, and learns the sum of the survivors only.

Each `take_*` reads bytes that are not trusted; a site's first valid document of a stage counts, the same again is
ignored, another is refused. Each of `directory`, `deliveries`, `survivors`, `statements` closes its stage: who has not
been heard of by then has dropped out. See `shared_model.secagg.site` for the protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import MessageError, QuorumError, RoundError
from shared_model.secagg import kept, masks, shamir
from shared_model.secagg.documents import (
    Delivery,
    Directory,
    Document,
    Keys,
    Masked,
    Opening,
    Shares,
    Statement,
    Statements,
    Survivors,
    Unmasking,
)
from shared_model.secagg.labels import pair_mask_key, self_mask_key
from shared_model.secagg.session import Session
from shared_model.signing import SigningKey


class Stage(IntEnum):
    """What the server is waiting for."""

    KEYS = 0
    SHARES = 1
    MASKED = 2
    STATEMENTS = 3
    UNMASKING = 4


@dataclass(frozen=True)
class SecureSum:
    """What comes out.

    total: sum over the survivors of coefficient times values. weight: sum of their coefficients.
    error: greatest distance of any number in `total` from that of the real numbers.
    """

    total: NDArray[np.float64]
    survivors: tuple[str, ...]
    weight: float
    error: float

    @property
    def mean(self) -> NDArray[np.float64]:
        """The survivors' weighted mean."""
        return self.total / self.weight


SiteDocument = TypeVar("SiteDocument", Keys, Shares, Masked, Statement, Unmasking)


class Server:
    """One sum at the coordinator. Keep :meth:`to_bytes` with the round's journal to go on after a crash."""

    def __init__(self, session: Session, signing: SigningKey) -> None:
        assert session.coordinator == signing.public.hex
        self.session, self.stage = session, Stage.KEYS
        self._signing, self._digest = signing, session.digest
        self._keys: dict[str, Keys] = {}
        self._shares: dict[str, Shares] = {}
        self._masked: dict[str, str] = {}
        self._statements: dict[str, Statement] = {}
        self._unmaskings: dict[str, Unmasking] = {}
        self._total = np.zeros(session.length, dtype=session.code.dtype)

    def heard(self, stage: Stage) -> tuple[str, ...]:
        """Sites whose valid document of a stage is here, in the order of their names."""
        answered = (self._keys, self._shares, self._masked, self._statements, self._unmaskings)[stage]
        return tuple(sorted(answered))

    def opening(self) -> bytes:
        """For every site: the terms."""
        return self._signed(Opening(session=self._digest, terms=self.session))

    def take_keys(self, data: bytes) -> None:
        """A site's :class:`Keys`.

        Raises:
            MessageError, SignatureError: refused; the site is as if it had not answered.
        """
        document = self._read(Keys, data, Stage.KEYS, self.session.sites)
        self._once(self._keys, document)

    def directory(self) -> bytes:
        """Close the stage of keys; the same for every site that sent some.

        Raises:
            QuorumError: below the threshold.
        """
        self._close(Stage.KEYS, self._keys)
        return self._signed(self._directory())

    def take_shares(self, data: bytes) -> None:
        """A site's :class:`Shares`.

        Raises:
            MessageError, SignatureError: as above.
        """
        document = self._read(Shares, data, Stage.SHARES, self._keys)
        pairs = [(document.site, other) for other in sorted(self._keys) if other != document.site]
        parcels = [(parcel.sender, parcel.receiver) for parcel in document.parcels]
        if document.directory != self._directory().digest or parcels != pairs:
            raise MessageError("shares that are not for the sites of the directory")
        self._once(self._shares, document)

    def deliveries(self) -> dict[str, bytes]:
        """Close the stage of shares; to each sharer its own.

        Raises:
            QuorumError: below the threshold.
        """
        self._close(Stage.SHARES, self._shares)
        sharers, directory = tuple(sorted(self._shares)), self._directory().digest
        parcels = {to: tuple(parcel for sender in sharers for parcel in self._shares[sender].parcels
                             if parcel.receiver == to) for to in sharers}  # fmt: skip
        return {to: self._signed(Delivery(session=self._digest, receiver=to, directory=directory, sharers=sharers,
                                          parcels=parcels[to])) for to in sharers}  # fmt: skip

    def take_masked(self, data: bytes, words: bytes) -> None:
        """A site's :class:`Masked` and its words, which are added to the running sum.

        Raises:
            MessageError, SignatureError: as above.
        """
        document = self._read(Masked, data, Stage.MASKED, self._shares)
        if (document.directory, document.sharers) != (self._directory().digest, tuple(sorted(self._shares))):
            raise MessageError("masked values of another list of sharers")
        if len(words) != self._total.nbytes or hashlib.sha256(words).hexdigest() != document.words_sha256:
            raise MessageError("masked words are not those that their document names", found=f"{len(words)} bytes",
                               expected=f"{self._total.nbytes} bytes")  # fmt: skip
        if self._masked.get(document.site, document.words_sha256) != document.words_sha256:
            raise self._another(document.site)
        if document.site not in self._masked:
            self._total += np.frombuffer(words, dtype=self._total.dtype)
            self._masked[document.site] = document.words_sha256

    def survivors(self) -> bytes:
        """Close the stage of masked values; for every survivor the same.

        Raises:
            QuorumError: below the threshold.
        """
        self._close(Stage.MASKED, self._masked)
        sharers, survivors = tuple(sorted(self._shares)), tuple(sorted(self._masked))
        return self._signed(Survivors(session=self._digest, directory=self._directory().digest, sharers=sharers,
                                      survivors=survivors))  # fmt: skip

    def take_statement(self, data: bytes) -> None:
        """A survivor's :class:`Statement`.

        Raises:
            MessageError, SignatureError: as above.
        """
        document = self._read(Statement, data, Stage.STATEMENTS, self._masked)
        told = (self._directory().digest, tuple(sorted(self._shares)), tuple(sorted(self._masked)))
        if (document.directory, document.sharers, document.survivors) != told:
            raise MessageError(f"{document.site} states another list than it was told")
        self._once(self._statements, document)

    def statements(self) -> bytes:
        """Close the stage of statements; for all who stated the same.

        Raises:
            QuorumError: below the threshold.
        """
        self._close(Stage.STATEMENTS, self._statements)
        return self._signed(Statements(session=self._digest, statements=_in_order(self._statements)))

    def take_unmasking(self, data: bytes) -> None:
        """A survivor's :class:`Unmasking`.

        Raises:
            MessageError, SignatureError: as above.
        """
        document = self._read(Unmasking, data, Stage.UNMASKING, self._statements)
        seeds, mask_keys = sorted(self._masked), sorted(set(self._shares) - set(self._masked))
        if [s.owner for s in document.seeds] != seeds or [s.owner for s in document.mask_keys] != mask_keys:
            raise MessageError(f"{document.site} unmasks other sites than it was asked for")
        self._once(self._unmaskings, document)

    def result(self) -> SecureSum:
        """The sum over the survivors; may be asked as soon as the threshold has unmasked, and again.

        Raises:
            QuorumError: below the threshold: nothing can be revealed.
            RoundError: some share was false, or some site's words cannot have been made of values in their bound.
        """
        self._quorum(self._unmaskings)
        if self.stage != Stage.UNMASKING:
            raise RoundError("the secure sum is not as far as its result", found=self.stage.name)
        words = self._total.copy()
        for site in sorted(self._masked):
            masks.apply(words, self_mask_key(self._digest, site, self._seed(site)), subtract=True)
        for gone in sorted(set(self._shares) - set(self._masked)):
            private = self._mask_key(gone)
            for site in sorted(self._masked):
                key = pair_mask_key(self._digest, self._keys[gone], self._keys[site], private=private)
                masks.apply(words, key, subtract=site < gone)
        return self._decoded(words)

    def to_bytes(self) -> bytes:
        """All that :meth:`from_bytes` needs; no secret of a site is in it before the threshold has unmasked."""
        about = kept.ServerKept(
            session=self.session, stage=self.stage, keys=_in_order(self._keys), shares=_in_order(self._shares),
            masked=tuple(sorted(self._masked.items())), statements=_in_order(self._statements),
            unmaskings=_in_order(self._unmaskings),
        )  # fmt: skip
        return kept.pack(about, self._total.tobytes())

    @classmethod
    def from_bytes(cls, data: bytes, *, signing: SigningKey) -> Self:
        """Go on where :meth:`to_bytes` was.

        Raises:
            StorageError: damaged, or of another coordinator's key.
        """
        about, words = kept.unpack(kept.ServerKept, data)
        if about.session.coordinator != signing.public.hex:
            raise kept.damaged("is of another coordinator")
        server = cls(about.session, signing)
        if len(words) != server._total.nbytes:
            raise kept.damaged("is damaged")
        server.stage = Stage(about.stage)
        server._keys = {document.site: document for document in about.keys}
        server._shares = {document.site: document for document in about.shares}
        server._masked = dict(about.masked)
        server._statements = {document.site: document for document in about.statements}
        server._unmaskings = {document.site: document for document in about.unmaskings}
        server._total = np.frombuffer(words, dtype=server._total.dtype).copy()
        return server

    def _directory(self) -> Directory:
        return Directory(session=self._digest, keys=_in_order(self._keys))

    def _signed(self, document: Document) -> bytes:
        return document.signed(self._signing).to_bytes()

    def _read(self, kind: type[SiteDocument], data: bytes, stage: Stage, among: Iterable[str]) -> SiteDocument:
        if self.stage != stage:
            raise MessageError("a document of a stage of the secure sum that is not open", found=stage.name,
                               expected=self.stage.name)  # fmt: skip
        document = kind.from_bytes(data)
        if document.session != self._digest or document.site not in set(among):
            raise MessageError("a document of another secure sum, or of a site that is not in this stage",
                               found=document.site)  # fmt: skip
        document.check(self.session.key_of(document.site))
        return document

    def _once(self, taken: dict[str, SiteDocument], document: SiteDocument) -> None:
        if taken.setdefault(document.site, document) != document:
            raise self._another(document.site)

    def _another(self, site: str) -> MessageError:
        return MessageError(f"{site} sent two different documents in one stage of the secure sum; the first counts")

    def _close(self, stage: Stage, answered: Mapping[str, object]) -> None:
        """Go on to the next stage; asked again later, it changes nothing."""
        if self.stage < stage:
            raise RoundError("the secure sum is not that far", found=self.stage.name, expected=stage.name)
        if self.stage == stage:
            self._quorum(answered)
            self.stage = Stage(stage + 1)

    def _quorum(self, answered: Mapping[str, object]) -> None:
        if len(answered) < self.session.threshold:
            raise QuorumError("too few sites for the secure sum; nothing was revealed", found=len(answered),
                              expected=f"at least {self.session.threshold} of {len(self.session.peers)}",
                              remedy="open a new attempt when the sites are back")  # fmt: skip

    def _seed(self, site: str) -> bytes:
        shares = {u.site: s.share for u in self._unmaskings.values() for s in u.seeds if s.owner == site}
        seed = self._join(site, shares)
        if hashlib.sha256(seed).hexdigest() != self._shares[site].seed_sha256:
            raise self._false(site)
        return seed

    def _mask_key(self, site: str) -> bytes:
        shares = {u.site: s.share for u in self._unmaskings.values() for s in u.mask_keys if s.owner == site}
        private = self._join(site, shares)
        if masks.public_hex(private) != self._keys[site].mask_key:
            raise self._false(site)
        return private

    def _join(self, owner: str, shares: Mapping[str, str]) -> bytes:
        places = {self.session.place_of(site): int(share, 16) for site, share in shares.items()}
        try:
            return shamir.join(places, threshold=self.session.threshold)
        except MessageError:
            raise self._false(owner) from None

    def _false(self, site: str) -> RoundError:
        return RoundError(f"the shares of {site} do not fit together: it, or one who kept a share, gave a false one",
                          remedy="open a new attempt; the signed documents of this one are the evidence")  # fmt: skip

    def _decoded(self, words: masks.Words) -> SecureSum:
        code, survivors = self.session.code, tuple(sorted(self._masked))
        coefficients = [self.session.coefficients[site] for site in survivors]
        total, error, weight = code.decode(words), code.error(coefficients), sum(coefficients)
        if float(np.abs(total).max()) > weight * self.session.bound + error:
            raise RoundError("the secure sum is beyond what values in their bound can give: some site sent false words")
        return SecureSum(total=total, survivors=survivors, weight=weight, error=error)


Sited = TypeVar("Sited", Keys, Shares, Statement, Unmasking)


def _in_order(documents: Mapping[str, Sited]) -> tuple[Sited, ...]:
    return tuple(documents[site] for site in sorted(documents))
