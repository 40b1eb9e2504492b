"""Ports of the loopback for servers that a test starts later, or starts again; nobody else gets them in between."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


def hold_port() -> socket.socket:
    """A socket that keeps a free port and does not listen: until it is closed, the kernel gives its port to nobody who
    asks for any port, whoever connects there is refused, and a server that asks for this very port gets it.

    A port that was free a moment ago may be another test process's by the time somebody listens on it.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # with which a server may bind beside it (socket(7))
    holder.bind(("127.0.0.1", 0))
    return holder


def port_of(holder: socket.socket) -> int:
    return int(holder.getsockname()[1])


@contextmanager
def held_ports(count: int) -> Iterator[tuple[int, ...]]:
    """So many different ports, held until the block ends."""
    with ExitStack() as stack:
        yield tuple(port_of(stack.enter_context(hold_port())) for _ in range(count))
