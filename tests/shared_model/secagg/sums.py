"""A secure sum that is played in one process, with sites that fall out when a test says so."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shared_model.secagg import Peer, SecureSum, Server, Session, Site
from shared_model.signing import SigningKey

COORDINATOR = SigningKey.generate()
STEPS = ("keys", "share", "mask", "confirm", "unmask")
NEVER = len(STEPS)


@cache
def key_of(site: str) -> SigningKey:
    """The signing key of a site, the same in all tests of a process."""
    return SigningKey.generate()


def names(count: int) -> list[str]:
    return [f"site-{number:02d}" for number in range(count)]


def session(count: int = 3, **changes: object) -> Session:
    """Terms with unequal coefficients."""
    peers = tuple(Peer(site=name, key=key_of(name).public.hex, coefficient=1 / (1 + number))
                  for number, name in enumerate(names(count)))  # fmt: skip
    values = {"release": "1", "study": "study", "protocol_sha256": "ab" * 32, "round": 1, "attempt": 0,
              "what": "update", "coordinator": COORDINATOR.public.hex, "peers": peers, "length": 7, "bound": 1.0,
              "bits": 32} | changes  # fmt: skip
    return Session.model_validate(values)


def join(
    opening: bytes, site: str, peers: Collection[str], *, least_sites: int = 3, revealed: Collection[str] = ()
) -> Site:
    """A site whose administrator has confirmed all of `peers`."""
    confirmed = {name: key_of(name).public for name in peers}
    return Site.join(opening, site=site, signing=key_of(site), coordinator=COORDINATOR.public, confirmed=confirmed,
                     least_sites=least_sites, revealed=revealed)  # fmt: skip


@dataclass
class Play:
    """A sum step by step. falls_out: the step (index of `STEPS`) that a site does not answer any more.

    kept: whether every party is turned into bytes and back after each step.
    """

    terms: Session
    falls_out: dict[str, int] = field(default_factory=dict)
    kept: bool = False
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = Server(self.terms, COORDINATOR)
        self.sites: dict[str, Site] = {}
        self.sent: dict[str, list[bytes]] = {}
        for number, name in enumerate(self.terms.sites):
            draw = np.random.default_rng(number).uniform(-1, 1, self.terms.length) * self.terms.bound
            self.values.setdefault(name, draw)

    def there(self, step: str) -> list[str]:
        return [s for s in self.terms.sites if self.falls_out.get(s, NEVER) > STEPS.index(step)]

    def keys(self) -> None:
        opening = self.server.opening()
        self.sites = {name: join(opening, name, self.terms.sites) for name in self.there("keys")}
        for name in self.there("keys"):
            self.server.take_keys(self._say(name, self.sites[name].keys()))
        self._keep()

    def share(self) -> None:
        directory = self.server.directory()
        for name in self.there("share"):
            self.server.take_shares(self._say(name, self.sites[name].share(directory)))
        self._keep()

    def mask(self) -> None:
        deliveries = self.server.deliveries()
        for name in self.there("mask"):
            sent = self.sites[name].mask(deliveries[name], self.values[name])
            self._say(name, sent.document)
            self.server.take_masked(sent.document, self._say(name, sent.words))
        self._keep()

    def confirm(self) -> None:
        survivors = self.server.survivors()
        for name in self.there("confirm"):
            self.server.take_statement(self._say(name, self.sites[name].confirm(survivors)))
        self._keep()

    def unmask(self) -> None:
        statements = self.server.statements()
        for name in self.there("unmask"):
            self.server.take_unmasking(self._say(name, self.sites[name].unmask(statements)))
        self._keep()

    def until(self, step: str) -> Play:
        """Play all steps before `step`."""
        for each in STEPS[: STEPS.index(step)]:
            getattr(self, each)()
        return self

    def run(self) -> SecureSum:
        self.until("unmask").unmask()
        return self.server.result()

    def plain(self) -> NDArray[np.float64]:
        """What the sum over the survivors should be."""
        weights = self.terms.coefficients
        return sum((weights[name] * self.values[name] for name in self.there("mask")), np.zeros(self.terms.length))

    def _say(self, name: str, data: bytes) -> bytes:
        self.sent.setdefault(name, []).append(data)
        return data

    def _keep(self) -> None:
        if self.kept:
            self.server = Server.from_bytes(self.server.to_bytes(), signing=COORDINATOR)
            for name, site in self.sites.items():
                self.sites[name] = Site.from_bytes(site.to_bytes(), signing=key_of(name))
