"""Ports of the loopback for processes that are started later, or started again; used by engines and tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager


@contextmanager
def held_ports(count: int) -> Iterator[Sequence[int]]:
    """Ports that stay the caller's while the block runs, whether somebody listens there or not.

    Each has a socket that never listens: the kernel gives such a port to nobody who asks for any, and whoever knows
    its number listens on it beside that socket, because servers set SO_REUSEADDR, too (socket(7)).
    """
    with ExitStack() as stack:
        holders = [stack.enter_context(socket.socket()) for _ in range(count)]
        for holder in holders:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
        yield [int(holder.getsockname()[1]) for holder in holders]
