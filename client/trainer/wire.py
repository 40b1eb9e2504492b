"""How message bytes cross the Unix socket: one gRPC stream each way in bounded chunks; used by both of its ends.

Generic handlers over raw bytes, so there is no generated code. What the bytes mean is `shared_model.messages`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from shared_model.errors import ConfigError, MessageError
from shared_model.messages import CHUNK_BYTES, MAX_FRAME_BYTES

SERVICE = "mammofed.Trainer"
METHOD = "Exchange"
SITE_KEY = "site"
MAX_SOCKET_PATH = 100  # the kernel takes 107 bytes (unix(7), sun_path), gRPC adds nothing

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", CHUNK_BYTES + 1024),
    ("grpc.max_send_message_length", CHUNK_BYTES + 1024),
    ("grpc.enable_http_proxy", 0),           # a proxy set for the hospital's web traffic has no business here
    ("grpc.use_local_subchannel_pool", 1),   # otherwise a restarted trainer inherits the back-off of the dead one
)  # fmt: skip


def address(socket: Path) -> str:
    """gRPC address of a Unix socket.

    Raises:
        ConfigError: relative, or longer than the kernel takes.
    """
    if not socket.is_absolute() or len(str(socket).encode()) > MAX_SOCKET_PATH:
        raise ConfigError("trainer socket: path cannot be used", found=str(socket),
                          expected=f"an absolute path of at most {MAX_SOCKET_PATH} bytes",
                          remedy="put the socket in a folder with a short name")  # fmt: skip
    return f"unix:{socket}"


def chunks(data: bytes) -> Iterator[bytes]:
    """`data` in pieces of at most `CHUNK_BYTES`, at least one."""
    view = memoryview(data)
    for start in range(0, max(len(data), 1), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def join(parts: Iterable[bytes], *, limit: int = MAX_FRAME_BYTES) -> bytes:
    """The message that :func:`chunks` took apart; stops reading as soon as it grows above `limit` bytes.

    Raises:
        MessageError: larger than `limit`.
    """
    data = bytearray()
    for part in parts:
        if len(data) + len(part) > limit:
            raise MessageError("message is too large", found=f"more than {limit} bytes", expected=f"at most {limit}",
                               remedy="choose a smaller model size")  # fmt: skip
        data += part
    return bytes(data)
