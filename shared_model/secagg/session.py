"""The terms of one secure sum: what every party must agree on, and what every key and message is bound to.

A site makes its :class:`Session` from the approved protocol and the signed request, or checks the one that came against
them. Sites are its `peers`; `threshold` follows from their number and is no one's choice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from shared_model.errors import PrivacyError
from shared_model.messages import Fields
from shared_model.protocol import Name, Sha256
from shared_model.secagg.fixed_point import Bits, FixedPoint
from shared_model.signing import VerifyKey

LEAST_SITES: Final = 3
MAX_SITES: Final = 256
MAX_WORDS: Final = 1 << 25  # of 32 bits: as many bytes as a message may have (shared_model.tensors)

HexKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def threshold(sites: int) -> int:
    """How many sites must go through to the end: at least three, and at least two thirds of those that were named.

    With 2 * threshold > sites + colluders the coordinator and that many colluding sites cannot make two halves believe
    in two lists of survivors (Bonawitz et al. 2017, section 6.2).
    """
    return max(LEAST_SITES, -(-2 * sites // 3))


class Peer(Fields):
    """A site. key: its Ed25519 signing key. coefficient: public; its values are multiplied by it before masking."""

    site: Name
    key: HexKey
    coefficient: float = Field(ge=1e-9, le=1)


class Session(Fields):
    """The terms of one sum.

    what: name of the quantity, so that one round may sum several. length: numbers in each site's vector.
    bound: greatest absolute value of any of them, before the coefficient. bits: width of a word on the wire.
    """

    schema_version: Literal[1] = 1
    release: str = Field(max_length=32)
    study: Name
    protocol_sha256: Sha256
    round: int = Field(ge=0, le=10_000)
    attempt: int = Field(ge=0, le=10_000)
    what: Name
    coordinator: HexKey
    peers: tuple[Peer, ...] = Field(min_length=LEAST_SITES, max_length=MAX_SITES)
    length: int = Field(ge=1, le=MAX_WORDS)
    bound: float = Field(ge=1e-12, le=1e12)
    bits: Bits

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        names = [peer.site for peer in self.peers]
        if names != sorted(set(names)):
            raise ValueError("peers must be in the order of their names, each once")
        if len({peer.key for peer in self.peers} | {self.coordinator}) != len(names) + 1:
            raise ValueError("no two parties may have one signing key")
        if self.length * self.bits > MAX_WORDS * 32:
            raise ValueError("the vector is longer than a message may be")
        return self

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all the terms: it names the sum in every key, mask and message."""
        values = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def subject(self) -> str:
        """What is summed, whatever the attempt and whoever the peers: see `revealed` of :meth:`admit`."""
        return f"{self.protocol_sha256}/{self.what}/{self.round}"

    @property
    def slot(self) -> str:
        """What a site may be asked once in a protocol, whoever the peers are: two sums over almost the same sites
        would tell the difference. Goes with :class:`shared_model.signed_request.RequestBook`.
        """
        return f"secure-sum/{self.what}/{self.round}/{self.attempt}"

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, sorted."""
        return tuple(peer.site for peer in self.peers)

    @property
    def threshold(self) -> int:
        """See :func:`threshold`."""
        return threshold(len(self.peers))

    @property
    def coefficients(self) -> dict[str, float]:
        """Public coefficient of each site."""
        return {peer.site: peer.coefficient for peer in self.peers}

    @property
    def code(self) -> FixedPoint:
        """How values become words in this sum."""
        return FixedPoint.fitting(bits=self.bits, bound=self.bound, coefficients=self.coefficients.values())

    def key_of(self, site: str) -> VerifyKey:
        """The signing key of a peer, which must be one."""
        return VerifyKey.from_hex(next(peer.key for peer in self.peers if peer.site == site))

    def place_of(self, site: str) -> int:
        """Place of a peer's share, from 0."""
        return self.sites.index(site)

    def admit(
        self, *, site: str, key: VerifyKey, confirmed: Mapping[str, VerifyKey], least_sites: int,
        revealed: Collection[str],
    ) -> None:  # fmt: skip
        """Refuse a sum in which `site` should not take part.

        Args:
            confirmed: the signing keys of other sites whose words this site's administrator has compared. A peer that
                is not among them may be an invention of the coordinator, who is the certificate authority.
            least_sites: how many sites at least must be in every sum that is revealed; three at least.
            revealed: the :attr:`subject` of each sum that this site has helped to unmask with the very values that it
                would bring again. The difference of two such sums over almost the same sites is one site's values. A
                crashed coordinator goes on with the sum that it has; where each attempt draws new noise that is paid
                for, its earlier ones need not be named.

        Raises:
            PrivacyError: too few, a peer that nobody here has confirmed, this site is not named, or revealed before.
        """
        if self.subject in revealed:
            raise PrivacyError("these values were summed before; a second sum over other sites would tell them apart",
                               found=f"{self.what}, round {self.round}",
                               remedy="the coordinator goes on with the first sum, or with the next round")  # fmt: skip
        if self.threshold < max(LEAST_SITES, least_sites):
            raise PrivacyError("the secure sum may be opened with fewer sites than this site allows",
                               found=self.threshold, expected=f"at least {max(LEAST_SITES, least_sites)}")  # fmt: skip
        if (site, key.hex) not in {(peer.site, peer.key) for peer in self.peers}:
            raise PrivacyError("the secure sum does not name this site with its signing key")
        for peer in self.peers:
            if peer.site != site and (peer.site not in confirmed or confirmed[peer.site].hex != peer.key):
                raise PrivacyError(f"the secure sum names {peer.site} with a key that this site has not confirmed",
                                   found=peer.key[:16],
                                   remedy="compare the six words of its key with its administrator")  # fmt: skip
