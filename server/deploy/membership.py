"""Makes SuperLink's list of nodes agree with the registry: who is confirmed is registered, who is revoked is not."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from server.deploy.home import CoordinatorHome
from server.deploy.link import Link
from server.deploy.nodes import Node
from server.enrolment.registry import Enrolled, MemberState, Registry
from shared_model.errors import RoundError, StorageError
from shared_model.private_files import read_private, remove_private, write_private

MARKER = "registering.json"
RETRY_S = 60.0  # before a node that SuperLink refuses is tried again; each try costs two of Flower's commands


class Membership:
    """Called by the daemon every second or so; asks SuperLink only when something is to be done.

    Args:
        report: is told what was done: site, words.
    """

    def __init__(
        self, home: CoordinatorHome, link: Link, registry: Registry, *, report: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._link, self._registry, self._report, self._clock = link, registry, report, clock
        self._marker: Path = home.link / MARKER
        self._version: tuple[int, int] | None = None
        self._refused: dict[str, str] = {}
        self._again = 0.0

    def check_again(self) -> None:
        """Compare with SuperLink's own list at the next step: it was started anew and may have lost its database."""
        self._version = None

    def step(self) -> None:
        """Bring the two lists together.

        Raises:
            RoundError: SuperLink does not answer; try again later. StorageError: our disk refuses.
        """
        version = self._registry.version()
        if version == self._version and not (self._refused and self._clock() >= self._again):
            return
        with self._link.several():
            self._agree()
        self._version = version

    def _agree(self) -> None:
        wanted = {m.member.site: m for m in self._registry.members() if m.state is MemberState.CONFIRMED}
        known = self._link.node_ids()
        self._check_record(known)
        nodes = {number: node for number, node in self._link.nodes.read().items() if number in known}
        nodes |= self._interrupted(known, nodes)
        keys = {site: _node(member).key for site, member in wanted.items()}
        for number, node in list(nodes.items()):
            if keys.get(node.site) != node.key:
                self._link.unregister(number)
                del nodes[number]
                self._report(node.site, "its node is shut out")
        self._link.nodes.write(nodes)
        there = {node.site for node in nodes.values()}
        refused = {}
        for site in sorted(wanted.keys() - there):
            try:
                number = self._register(wanted[site], known)
            except RoundError as error:  # one that is refused keeps nobody else out
                refused[site] = str(error)
                continue
            nodes[number] = _node(wanted[site])
            self._link.nodes.write(nodes)
            remove_private(self._marker)
            self._report(site, "its node is let in")
        self._tell(refused)

    def _check_record(self, known: set[int]) -> None:
        """Without our record nobody can say which of SuperLink's nodes is whose, and it takes no key a second time."""
        if known and not self._link.nodes.path.exists() and not self._marker.exists():
            raise StorageError(f"{self._link.nodes.path} is gone", found=f"{len(known)} nodes at SuperLink",
                               expected="the record of whose they are", remedy="restore it, or end the daemon and "
                               "remove state.db beside it: both are made again, and studies go on")  # fmt: skip

    def _register(self, member: Enrolled, known: set[int]) -> int:
        site = member.member.site
        # SuperLink never tells which key a node has, and takes no key twice: should this process die between its
        # answer and our record, the node that is new since the marker is the one.
        note = {"node": asdict(_node(member)), "before": sorted(map(str, known))}
        write_private(self._marker, json.dumps(note).encode())
        try:
            number = self._link.register(site, member.node)
        except RoundError:
            new = self._link.node_ids() - known  # raises where SuperLink is away, and then all of it is tried again
            if len(new) != 1:
                raise
            number = new.pop()  # its answer was lost
        known.add(number)
        return number

    def _interrupted(self, known: set[int], nodes: dict[int, Node]) -> dict[int, Node]:
        """The node whose registration was cut short: by its marker, unless it is on record by now."""
        if not self._marker.exists():
            return {}
        note = json.loads(read_private(self._marker))
        node, new = Node(**note["node"]), known - nodes.keys() - set(map(int, note["before"]))
        return {new.pop(): node} if len(new) == 1 and node not in nodes.values() else {}

    def _tell(self, refused: dict[str, str]) -> None:
        """Say once of each node that SuperLink does not take; it is tried again now and then."""
        for site, words in refused.items():
            if site not in self._refused:
                self._report(site, f"SuperLink does not take its node: {words}"[:300])
        self._refused, self._again = refused, self._clock() + RETRY_S


def _node(member: Enrolled) -> Node:
    return Node(site=member.member.site, role=member.member.role.value, key=hashlib.sha256(member.node).hexdigest())
