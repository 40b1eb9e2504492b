"""Ports of the loopback for servers that a test starts later, or starts again; nobody else gets them in between."""

from __future__ import annotations

from contextlib import ExitStack

from simulations.ports import held_ports

_HELD = ExitStack()  # given back when this process ends, however it ends


def free_port() -> int:
    """A port on which nobody listens, this test process's own to its end.

    One that was only free a moment ago may be another's by the time the server that it is for listens.
    """
    (port,) = _HELD.enter_context(held_ports(1))
    return port
