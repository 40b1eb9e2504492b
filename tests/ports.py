"""Ports for what a test starts, or starts again: nobody else on this machine is given them while the tests run."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST = 20_000
_held: list[int] = []  # open locks; they are given back when this process ends, however it ends


def free_port() -> int:
    """A port of the loopback on which nobody listens, for this test process alone.

    The kernel's own choice would be given back before the server that it is for listens, and handed out to the next who
    connects to anything. These lie below the kernel's range, and a lock keeps them from other test processes.
    """
    end = int(RANGE.read_text().split()[0])
    assert end > FIRST, f"{RANGE} leaves no port between {FIRST} and {end}"
    locks = Path(tempfile.gettempdir()) / f"mammofed-test-ports-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    for port in random.sample(range(FIRST, end), end - FIRST):
        lock = os.open(locks / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:  # another test's, or a server's of this machine
            os.close(lock)
            continue
        _held.append(lock)
        return port
    raise AssertionError("no port is free")
