"""Which Flower node is which enrolled party, on the disk: written by the daemon, read by the ServerApp."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shared_model.errors import StorageError
from shared_model.private_files import read_private, write_private

MAX_NODES_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node at SuperLink. role: `site` or `evaluator`; key: hex SHA-256 of its public key (SPKI)."""

    site: str
    role: str
    key: str


class Nodes:
    """The record in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[int, Node]:
        """Node id -> who.

        Raises:
            StorageError: the file is damaged.
        """
        if not self.path.exists():
            return {}
        try:
            found = json.loads(read_private(self.path, limit=MAX_NODES_BYTES))
            return {int(number): Node(site=str(node["site"]), role=str(node["role"]), key=str(node["key"]))
                    for number, node in found.items()}  # fmt: skip
        except (ValueError, AttributeError, KeyError, TypeError):
            raise StorageError(f"{self.path} is damaged", remedy="end the daemon, remove it and state.db beside "
                               "it: both are made again") from None  # fmt: skip

    def write(self, nodes: Mapping[int, Node]) -> None:
        """Replace the file."""
        values = {str(node): asdict(there) for node, there in sorted(nodes.items())}
        write_private(self.path, (json.dumps(values, indent=1) + "\n").encode())
