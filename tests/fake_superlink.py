"""A SuperLink that is none: answers Flower's commands as the real one does, from a state that a test can see and lose.

What it holds to be true of Flower 1.41 is checked against the real one in `tests/server/deploy/test_link.py`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from server.deploy.home import CoordinatorHome
from server.deploy.link import Link
from shared_model.errors import RoundError


@dataclass
class FakeSuperLink:
    """nodes: id -> key (SPKI) and status. A key is taken once for ever, ids are random, who was shut out stays listed.

    silent: it does not answer at all. calls: commands so far.
    """

    nodes: dict[int, tuple[bytes, str]] = field(default_factory=dict)
    silent: bool = False
    calls: list[tuple[str, ...]] = field(default_factory=list)
    refused: set[bytes] = field(default_factory=set)

    def live(self) -> dict[int, bytes]:
        return {number: key for number, (key, status) in self.nodes.items() if status != "unregistered"}

    def answer(self, *arguments: str) -> dict[str, Any]:
        self.calls.append(arguments)
        if self.silent:
            raise RoundError("SuperLink does not answer")
        if arguments[:2] == ("supernode", "ls"):
            return {"success": True, "nodes": [{"node-id": str(number), "status": status}
                                               for number, (_, status) in self.nodes.items()]}  # fmt: skip
        if arguments[:2] == ("supernode", "register"):
            key = load_ssh_public_key(Path(arguments[2]).read_bytes())
            spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            if spki in self.refused or spki in [known for known, _ in self.nodes.values()]:
                raise RoundError("SuperLink refuses `flwr supernode`", found="Public key already in use.")
            number = secrets.randbits(64) | 1
            self.nodes[number] = (spki, "registered")
            return {"success": True, "node-id": str(number)}
        if arguments[:2] == ("supernode", "unregister"):
            number = int(arguments[2])
            if number not in self.live():
                raise RoundError("SuperLink refuses `flwr supernode`", found="already deleted")
            self.nodes[number] = (self.nodes[number][0], "unregistered")
            return {"success": True}
        raise AssertionError(arguments)


class FakeLink(Link):
    """The coordinator's side, with a stand-in where Flower's command line would be run."""

    def __init__(self, home: CoordinatorHome, superlink: FakeSuperLink) -> None:
        super().__init__(home)
        self.superlink = superlink

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        return self.superlink.answer(*arguments)
