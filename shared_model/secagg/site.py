"""A site's side of the secure sum: what the trainer calls, step by step.

Double masking after Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017
(https://eprint.iacr.org/2017/281), the variant against an active server. Per step: what comes, what goes.

    join      Opening     -> Keys        two fresh X25519 keys, signed
    share     Directory   -> Shares      the mask key and a random seed, t of n, sealed for each other site
    mask      Delivery    -> Masked      values + mask of the seed +/- a mask with every site that shared
    confirm   Survivors   -> Statement   the one list of survivors that this site will ever sign for this sum
    unmask    Statements  -> Unmasking   t equal statements seen: a survivor's seed share, another's mask key share

The coordinator is not trusted: every list is counted against the threshold here, every peer's key is one that this
site's administrator confirmed, and shares go out only when t sites signed that they were told the same.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import MessageError, PrivacyError
from shared_model.secagg import kept, masks, shamir
from shared_model.secagg.documents import (
    Delivery,
    Directory,
    Document,
    Keys,
    Masked,
    OneShare,
    Opening,
    Parcel,
    Shares,
    Statement,
    Statements,
    Survivors,
    Unmasking,
)
from shared_model.secagg.labels import about_parcel, pair_mask_key, self_mask_key
from shared_model.secagg.session import Session
from shared_model.secagg.site_states import Contributed, Finished, Held, Keyed, Shared, State, Stated
from shared_model.signing import SigningKey, VerifyKey

ServerDocument = TypeVar("ServerDocument", bound=Document)


@dataclass(frozen=True)
class Contribution:
    """The reply of :meth:`Site.mask`: a document, and beside it the words that it names by their hash."""

    document: bytes
    words: bytes


class Site:
    """One site in one sum. Made by :meth:`join` or :meth:`from_bytes`; each step is taken once.

    The caller keeps :meth:`to_bytes` on the disk *before* a reply leaves, one for each :attr:`Session.slot`: whoever
    goes back to an older state could be made to answer twice. A repeated request gets the same bytes again.
    """

    def __init__(self, session: Session, site: str, signing: SigningKey, state: State, *, asked: str, words: bytes):
        self.session, self.site, self.state = session, site, state
        self._signing, self._asked, self._words = signing, asked, words
        self._digest = session.digest

    @classmethod
    def join(
        cls, opening: bytes, *, site: str, signing: SigningKey, coordinator: VerifyKey,
        confirmed: Mapping[str, VerifyKey], revealed: Collection[str], least_sites: int = 3,
    ) -> Self:  # fmt: skip
        """Take part in the sum that the coordinator opens.

        Args:
            coordinator: the key that this site enrolled with.
            confirmed, revealed, least_sites: see :meth:`Session.admit`.

        Raises:
            MessageError, SignatureError: not a document of this coordinator.
            PrivacyError: a sum in which this site should not take part.
        """
        document = Opening.from_bytes(opening)
        document.check(coordinator)
        session = document.terms
        if document.session != session.digest or session.coordinator != coordinator.hex:
            raise MessageError("the opening of a secure sum names other terms than it holds")
        session.admit(site=site, key=signing.public, confirmed=confirmed, revealed=revealed,
                      least_sites=least_sites)  # fmt: skip
        sealing, mask = secrets.token_bytes(masks.KEY_BYTES), secrets.token_bytes(masks.KEY_BYTES)
        keys = Keys(session=session.digest, site=site, sealing_key=masks.public_hex(sealing),
                    mask_key=masks.public_hex(mask)).signed(signing)  # fmt: skip
        state = Keyed(keys=keys, sealing_private=sealing.hex(), mask_private=mask.hex())
        return cls(session, site, signing, state, asked=_sha256(opening), words=b"")

    def keys(self, *, again: bytes | None = None) -> bytes:
        """The reply to the opening.

        Args:
            again: the opening, where it came once more.

        Raises:
            MessageError: the sum has gone on, or was opened with another document.
        """
        if not isinstance(self.state, Keyed) or (again is not None and _sha256(again) != self._asked):
            raise self._out_of_turn("keys")
        return self.state.keys.to_bytes()

    def share(self, directory: bytes) -> bytes:
        """Believe the others' keys, and share this site's secrets among them.

        Raises:
            MessageError, SignatureError: not a document of the coordinator or of the sites that it names.
            PrivacyError: too few sites, or keys that are not this site's own or are used twice.
        """
        if isinstance(self.state, Shared) and self._asked == _sha256(directory):
            return self.state.shares.to_bytes()
        if not isinstance(self.state, Keyed):
            raise self._out_of_turn("share")
        before, document = self.state, self._read(Directory, directory)
        self._check_directory(document, before.keys)
        seed = secrets.token_bytes(masks.KEY_BYTES)
        held = self._split(bytes.fromhex(before.mask_private), seed)
        parcels = tuple(self._seal(keys, held[keys.site], before) for keys in document.keys if keys.site != self.site)
        shares = Shares(session=self._digest, site=self.site, directory=document.digest, seed_sha256=_sha256(seed),
                        parcels=parcels).signed(self._signing)  # fmt: skip
        own = Held(owner=self.site, mask_key=held[self.site][0], seed=held[self.site][1])
        state = Shared(directory=document, sealing_private=before.sealing_private, mask_private=before.mask_private,
                       seed=seed.hex(), own=own, shares=shares)  # fmt: skip
        self._go_on(directory, state)
        return shares.to_bytes()

    def mask(self, delivery: bytes, values: NDArray[np.generic]) -> Contribution:
        """Open the others' shares and mask `values` (one dimension, `session.length`); once, whatever is asked again.

        Raises:
            MessageError, SignatureError: not what the others sealed for this site, or values of a wrong form.
            PrivacyError: too few sites.
        """
        if isinstance(self.state, Contributed) and self._asked == _sha256(delivery):
            return Contribution(self.state.masked.to_bytes(), self._words)
        if not isinstance(self.state, Shared):
            raise self._out_of_turn("mask")
        before, document = self.state, self._read(Delivery, delivery)
        if values.shape != (self.session.length,):
            raise MessageError("values of a wrong shape for the secure sum", found=values.shape,
                               expected=(self.session.length,))  # fmt: skip
        keys = self._check_delivery(document, before)
        held = tuple(self._open(parcel, keys[parcel.sender], before) for parcel in document.parcels)
        words = self._masked(values, before, [keys[sharer] for sharer in document.sharers if sharer != self.site])
        masked = Masked(session=self._digest, site=self.site, directory=before.directory.digest,
                        sharers=document.sharers, words_sha256=_sha256(words)).signed(self._signing)  # fmt: skip
        self._go_on(delivery, Contributed(held=_by_owner((*held, before.own)), masked=masked), words)
        return Contribution(masked.to_bytes(), words)

    def confirm(self, survivors: bytes) -> bytes:
        """State which list of survivors this site was told.

        Raises:
            MessageError, SignatureError: not a document of the coordinator.
            PrivacyError: too few survivors, or not of those who shared, or without this site.
        """
        if isinstance(self.state, Stated) and self._asked == _sha256(survivors):
            return self.state.statement.to_bytes()
        if not isinstance(self.state, Contributed):
            raise self._out_of_turn("confirm")
        before, document = self.state.masked, self._read(Survivors, survivors)
        if (document.directory, document.sharers) != (before.directory, before.sharers):
            raise PrivacyError("the coordinator names another directory or other sharers than before")
        self._count("survivors", document.survivors, among=before.sharers)
        statement = Statement(session=self._digest, site=self.site, directory=before.directory,
                              sharers=before.sharers, survivors=document.survivors).signed(self._signing)  # fmt: skip
        self._go_on(survivors, Stated(held=self.state.held, sharers=before.sharers, statement=statement))
        return statement.to_bytes()

    def unmask(self, statements: bytes) -> bytes:
        """Give out one share of each site that shared, when enough survivors were told the same as this one.

        Raises:
            MessageError, SignatureError: not a document of the coordinator or of the survivors.
            PrivacyError: too few statements, or a survivor was told something else: the coordinator lies.
        """
        if isinstance(self.state, Finished) and self._asked == _sha256(statements):
            return self.state.unmasking.to_bytes()
        if not isinstance(self.state, Stated):
            raise self._out_of_turn("unmask")
        told, document = self.state.statement, self._read(Statements, statements)
        self._check_statements(document, told)
        seeds, mask_keys = [], []
        for held in self.state.held:  # never both of one owner: with both, its values could be read
            if held.owner in told.survivors:
                seeds.append(OneShare(owner=held.owner, share=held.seed))
            else:
                mask_keys.append(OneShare(owner=held.owner, share=held.mask_key))
        unmasking = Unmasking(session=self._digest, site=self.site, seeds=tuple(seeds),
                              mask_keys=tuple(mask_keys)).signed(self._signing)  # fmt: skip
        self._go_on(statements, Finished(unmasking=unmasking))
        return unmasking.to_bytes()

    def to_bytes(self) -> bytes:
        """All that :meth:`from_bytes` needs; holds private keys."""
        about = kept.SiteKept(session=self.session, site=self.site, asked=self._asked, state=self.state)
        return kept.pack(about, self._words)

    @classmethod
    def from_bytes(cls, data: bytes, *, signing: SigningKey) -> Self:
        """Go on where :meth:`to_bytes` was.

        Raises:
            StorageError: damaged, or of another site's key.
        """
        about, words = kept.unpack(kept.SiteKept, data)
        if (about.site, signing.public.hex) not in {(peer.site, peer.key) for peer in about.session.peers}:
            raise kept.damaged("is of another site")
        return cls(about.session, about.site, signing, about.state, asked=about.asked, words=words)

    def _go_on(self, asked: bytes, state: State, words: bytes = b"") -> None:
        self.state, self._asked, self._words = state, _sha256(asked), words

    def _out_of_turn(self, step: str) -> MessageError:
        return MessageError(f"the secure sum is not where {step!r} can be asked, or it was asked with another body",
                            found=self.state.step, remedy="the coordinator opens a new attempt")  # fmt: skip

    def _read(self, kind: type[ServerDocument], data: bytes) -> ServerDocument:
        document = kind.from_bytes(data)
        document.check(VerifyKey.from_hex(self.session.coordinator))
        self._of_this_sum(document)
        return document

    def _of_this_sum(self, document: Document) -> None:
        if document.session != self._digest:
            raise MessageError("a document of another secure sum", found=document.session[:16],
                               expected=self._digest[:16])  # fmt: skip

    def _count(self, what: str, sites: tuple[str, ...], *, among: Iterable[str]) -> None:
        """Refuse a list that is not sorted, names strangers, leaves this site out or is below the threshold."""
        if list(sites) != sorted(set(sites)) or not set(sites) <= set(among):
            raise PrivacyError(f"the coordinator's list of {what} names a site twice or one that cannot be there")
        if self.site not in sites:
            raise PrivacyError(f"the coordinator's list of {what} leaves this site out", remedy="nothing: it is out")
        if len(sites) < self.session.threshold:
            raise PrivacyError(f"too few {what} for a secure sum", found=len(sites),
                               expected=f"at least {self.session.threshold} of {len(self.session.peers)}")  # fmt: skip

    def _check_directory(self, directory: Directory, own: Keys) -> None:
        self._count("keys", tuple(keys.site for keys in directory.keys), among=self.session.sites)
        for keys in directory.keys:
            self._of_this_sum(keys)
            keys.check(self.session.key_of(keys.site))
        every = [key for keys in directory.keys for key in (keys.sealing_key, keys.mask_key)]
        if own not in directory.keys or len(set(every)) != len(every):
            raise PrivacyError("the directory holds other keys of this site than its own, or one key twice")

    def _check_delivery(self, delivery: Delivery, before: Shared) -> dict[str, Keys]:
        keys = {each.site: each for each in before.directory.keys}
        self._count("sharers", delivery.sharers, among=keys)
        if (delivery.receiver, delivery.directory) != (self.site, before.directory.digest):
            raise MessageError("a delivery for another site or of another directory", found=delivery.receiver,
                               expected=self.site)  # fmt: skip
        if [(p.sender, p.receiver) for p in delivery.parcels] != [
            (sharer, self.site) for sharer in delivery.sharers if sharer != self.site
        ]:
            raise MessageError("a delivery that does not hold one parcel of each sharer for this site")
        return keys

    def _check_statements(self, document: Statements, told: Statement) -> None:
        sites = tuple(statement.site for statement in document.statements)
        self._count("statements", sites, among=told.survivors)
        for statement in document.statements:
            statement.check(self.session.key_of(statement.site))
            self._of_this_sum(statement)
            if statement.model_copy(update={"site": self.site, "signature": told.signature}) != told:
                raise PrivacyError(f"{statement.site} was told another list than this site: the coordinator lies",
                                   remedy="stop the study; both signed lists are the proof")  # fmt: skip

    def _split(self, mask_key: bytes, seed: bytes) -> dict[str, tuple[str, str]]:
        """Shares (mask key, seed) in hexadecimal for each peer."""
        sites, least = self.session.sites, self.session.threshold
        one, two = (shamir.split(secret, shares=len(sites), threshold=least) for secret in (mask_key, seed))
        return {site: (shamir.to_hex(a), shamir.to_hex(b)) for site, a, b in zip(sites, one, two, strict=True)}

    def _seal(self, to: Keys, shares: tuple[str, str], before: Keyed) -> Parcel:
        label = about_parcel(self._digest, before.keys, to)
        key = masks.agree(bytes.fromhex(before.sealing_private), to.sealing_key, *label)
        sealed = masks.seal(key, secrets.token_bytes(masks.NONCE_BYTES), bytes.fromhex("".join(shares)), label)
        return Parcel(sender=self.site, receiver=to.site, sealed=sealed.hex())

    def _open(self, parcel: Parcel, sender: Keys, before: Shared) -> Held:
        own = next(keys for keys in before.directory.keys if keys.site == self.site)
        label = about_parcel(self._digest, sender, own)
        key = masks.agree(bytes.fromhex(before.sealing_private), sender.sealing_key, *label)
        plain = masks.unseal(key, bytes.fromhex(parcel.sealed), label).hex()
        return Held(owner=parcel.sender, mask_key=plain[: shamir.SHARE_DIGITS], seed=plain[shamir.SHARE_DIGITS :])

    def _masked(self, values: NDArray[np.generic], before: Shared, others: list[Keys]) -> bytes:
        own = next(keys for keys in before.directory.keys if keys.site == self.site)
        words = self.session.code.encode(values, coefficient=self.session.coefficients[self.site])
        masks.apply(words, self_mask_key(self._digest, self.site, bytes.fromhex(before.seed)))
        for other in others:
            key = pair_mask_key(self._digest, own, other, private=bytes.fromhex(before.mask_private))
            masks.apply(words, key, subtract=other.site < self.site)
        return words.tobytes()


def _by_owner(held: Iterable[Held]) -> tuple[Held, ...]:
    return tuple(sorted(held, key=lambda each: each.owner))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
