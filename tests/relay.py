"""Carries TCP connections across the border of a network namespace through Unix sockets; started by tests/orthanc.py.

    python tests/relay.py tcp:127.0.0.1:0=unix:/x.sock unix:/y.sock=tcp:127.0.0.1:104 ...

Each argument is LISTEN=CONNECT. Once all are open, one line of JSON says the ports that were chosen. A path can be
reached from both sides of the border, a TCP port from one. `tls:CERTIFICATE,KEY,HOST:PORT` listens with TLS. With --lo
the loopback device of this namespace is put up first. Ends when its standard input does, so it outlives no parent.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import ssl
import struct
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def put_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What comes here goes there; the end of it too, and a broken connection breaks the other as well."""
    try:
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        else:  # TLS cannot be closed by halves
            writer.close()
    except OSError:
        writer.transport.abort()


async def carry(target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    kind, _, address = target.partition(":")
    try:
        if kind == "unix":
            there = await asyncio.open_unix_connection(address)
        else:
            host, _, port = address.rpartition(":")
            there = await asyncio.open_connection(host, int(port))
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
    for end in (writer, there[1]):
        end.close()


async def main(arguments: list[str]) -> None:
    if "--lo" in arguments:
        put_loopback_up()
    ports = []
    for argument in arguments:
        if argument == "--lo":
            continue
        listen, _, target = argument.partition("=")
        kind, _, address = listen.partition(":")

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str = target) -> object:
            return carry(target, reader, writer)

        if kind == "unix":
            await asyncio.start_unix_server(accept, address)
        else:
            *certificate, place = address.split(",")
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if kind == "tls" else None
            if context is not None:
                context.load_cert_chain(*certificate)
            host, _, port = place.rpartition(":")
            server = await asyncio.start_server(accept, host, int(port), ssl=context)
            ports.append(server.sockets[0].getsockname()[1])
    print(json.dumps(ports), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
