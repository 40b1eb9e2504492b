"""What a secure sum costs against a plain one: `mammofed simulate bench --only secure_sum`.

All parties are played one after the other in this process, without a network: CPU-seconds of one site, of the
coordinator, and bytes that a site sends, for 3, 10 and 50 sites with as many weights as model `small` has, and 10 with
those of `full`. The plain side signs and checks nothing: it hashes, copies and adds float32 vectors, as a round without
a secure sum does.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared_model.errors import RoundError
from shared_model.secagg import Peer, Server, Session, Site
from shared_model.signing import SigningKey
from simulations.benchmarks.table import Row

SMALL, FULL = 256_276, 7_509_428  # weights of the models of these names (a test counts them)
CASES: Final = ((3, SMALL, 0), (10, SMALL, 0), (10, SMALL, 2), (50, SMALL, 0), (50, SMALL, 10), (10, FULL, 0))
T = TypeVar("T")


@dataclass
class Cost:
    """CPU-seconds by party, and bytes sent by all sites."""

    seconds: dict[str, float] = field(default_factory=dict)
    sent: int = 0

    def of(self, party: str, act: Callable[[], T]) -> T:
        """Do it on a party's account."""
        began = time.process_time()
        done = act()
        self.seconds[party] = self.seconds.get(party, 0.0) + time.process_time() - began
        return done


def measure(*, cases: Sequence[tuple[int, int, int]] = CASES) -> list[Row]:
    """Rows of secure against plain.

    Args:
        cases: (sites, weights, how many of the sites fall out after they shared).

    Raises:
        RoundError: the two sums differ by more than the stated error.
    """
    rows = []
    for count, weights, gone in cases:
        values = [np.random.default_rng(site).uniform(-1, 1, weights).astype(np.float32) for site in range(count)]
        cost, plain = _secure(values, gone), _plain(values)
        site, server = cost.seconds["site"] / count, cost.seconds["server"]
        plain_site, plain_server = plain.seconds["site"] / count, plain.seconds["server"]
        name = f"{count} sites, {weights:,} weights" + (f", {gone} lost" if gone else "")
        rows += [
            Row(name=f"{name}: one site", value=1e3 * site, unit="ms", ratio=site / plain_site, against="plain sum"),
            Row(name=f"{name}: coordinator", value=1e3 * server, unit="ms", ratio=server / plain_server,
                against="plain sum"),
            Row(name=f"{name}: bytes of a site", value=cost.sent / count, unit="B", ratio=cost.sent / plain.sent,
                against="plain sum"),
        ]  # fmt: skip
    return rows


def _secure(values: list[NDArray[np.float32]], gone: int) -> Cost:
    cost, coordinator = Cost(), SigningKey.generate()
    keys = {f"site-{number:03d}": SigningKey.generate() for number in range(len(values))}
    peers = tuple(Peer(site=name, key=key.public.hex, coefficient=1.0) for name, key in keys.items())
    terms = Session(release="bench", study="bench", protocol_sha256="0" * 64, round=1, attempt=0, what="update",
                    coordinator=coordinator.public.hex, peers=peers, length=len(values[0]), bound=1.0,
                    bits=32)  # fmt: skip
    confirmed = {name: key.public for name, key in keys.items()}
    server = Server(terms, coordinator)

    def reply(act: Callable[[], bytes], take: Callable[[bytes], None]) -> None:
        data = cost.of("site", act)
        cost.sent += len(data)
        cost.of("server", lambda: take(data))

    opening, sites = cost.of("server", server.opening), {}
    for name in keys:
        sites[name] = cost.of("site", lambda name=name: Site.join(  # type: ignore[misc]
            opening, site=name, signing=keys[name], coordinator=coordinator.public, confirmed=confirmed,
            revealed=()))  # fmt: skip
        reply(sites[name].keys, server.take_keys)
    directory = cost.of("server", server.directory)
    for site in sites.values():
        reply(lambda site=site: site.share(directory), server.take_shares)  # type: ignore[misc]
    deliveries = cost.of("server", server.deliveries)
    stay = list(sites)[gone:]
    for name in stay:
        body, vector = deliveries[name], values[list(sites).index(name)]
        sent = cost.of("site", lambda name=name, body=body, vector=vector: sites[name].mask(body, vector))  # type: ignore[misc]
        cost.sent += len(sent.document) + len(sent.words)
        cost.of("server", lambda sent=sent: server.take_masked(sent.document, sent.words))  # type: ignore[misc]
    survivors = cost.of("server", server.survivors)
    for name in stay:
        reply(lambda name=name: sites[name].confirm(survivors), server.take_statement)  # type: ignore[misc]
    statements = cost.of("server", server.statements)
    for name in stay:
        reply(lambda name=name: sites[name].unmask(statements), server.take_unmasking)  # type: ignore[misc]
    found = cost.of("server", server.result)
    if np.abs(found.total - np.sum(values[gone:], axis=0, dtype=np.float64)).max() > found.error:
        raise RoundError("the secure sum of the bench is not the plain sum")
    return cost


def _plain(values: list[NDArray[np.float32]]) -> Cost:
    cost, total = Cost(), np.zeros(len(values[0]))

    def encode(vector: NDArray[np.float32]) -> bytes:
        data = vector.tobytes()
        hashlib.sha256(data).digest()
        return data

    def take(data: bytes) -> None:
        nonlocal total
        hashlib.sha256(data).digest()
        total += np.frombuffer(data, dtype=np.float32)

    for vector in values:
        data = cost.of("site", lambda vector=vector: encode(vector))  # type: ignore[misc]
        cost.sent += len(data)
        cost.of("server", lambda data=data: take(data))  # type: ignore[misc]
    return cost
