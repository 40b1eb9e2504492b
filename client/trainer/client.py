"""One request to a trainer over its Unix socket; called by the courier's shim. Imports neither torch nor Flower."""

from __future__ import annotations

import socket as sockets
import time
from pathlib import Path

import grpc

from client.trainer.wire import CHANNEL_OPTIONS, METHOD, SERVICE, SITE_KEY, address, chunks, join
from shared_model.errors import TrainerError

POLL_S = 0.1  # between looks at a trainer that is not there yet


def call(socket: Path, site: str, data: bytes, timeout: float) -> bytes:
    """Send an encoded frame to the trainer that hosts `site` and wait for its encoded reply.

    Args:
        socket: absolute path of the trainer's Unix socket.
        site: name of the site (a trainer may host several).
        data: bytes of `shared_model.messages.encode`.
        timeout: seconds until the reply is given up (the trainer finishes and keeps its reply for a repetition).

    Raises:
        TrainerError: nobody listens, the trainer died meanwhile, or the time is over.
        MessageError: the reply is larger than the bound.
    """
    with grpc.insecure_channel(address(socket), options=CHANNEL_OPTIONS) as channel:
        exchange = channel.stream_stream(f"/{SERVICE}/{METHOD}")
        try:
            return join(exchange(chunks(data), metadata=((SITE_KEY, site),), timeout=timeout))
        except grpc.RpcError as error:
            raise _in_words(error, site, timeout) from None


def wait_for(socket: Path, patience: float) -> float:
    """Wait at most `patience` seconds until somebody listens on `socket`: the trainer's supervisor may just be starting
    it again. A trainer listens once it can answer.

    Returns:
        seconds that it took.
    """
    began = time.monotonic()
    while time.monotonic() < began + patience and not listens(socket):
        time.sleep(POLL_S)
    return time.monotonic() - began


def listens(socket: Path) -> bool:
    """Whether a trainer listens on `socket`."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(socket))
        except OSError:  # no such file, or a dead trainer's
            return False
    return True


def _in_words(error: grpc.RpcError, site: str, timeout: float) -> TrainerError:
    code = error.code()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return TrainerError(f"trainer of {site} did not answer in time", found=f"{timeout:.1f} s",
                            remedy="raise the round's deadline, or give the site a faster machine")  # fmt: skip
    if code == grpc.StatusCode.UNAVAILABLE:
        return TrainerError(f"trainer of {site} cannot be reached or died during the request",
                            remedy="look into the trainer's log and start it again")  # fmt: skip
    if code == grpc.StatusCode.NOT_FOUND:
        return TrainerError(f"this trainer does not host {site}", remedy="check the courier's site name")
    return TrainerError(f"trainer of {site} failed on the request", found=code.name,
                        remedy="look into the trainer's log")  # fmt: skip
