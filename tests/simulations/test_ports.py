"""Ports that are held for processes which are started later, or again."""

from __future__ import annotations

import socket

import pytest

from simulations.ports import held_ports


def test_held_ports_are_for_who_knows_them_again_and_again() -> None:
    with held_ports(2) as ports:
        assert len(set(ports)) == 2
        for port in (*ports, *ports):
            with socket.create_server(("127.0.0.1", port)):
                socket.create_connection(("127.0.0.1", port), timeout=30).close()
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("127.0.0.1", ports[0]))  # as who asks for any port does: without knowing that it is shared
