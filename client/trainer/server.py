"""The trainer's process: hosts one or more sites on a Unix socket. Started by a service file or the simulator's pool.

    python -m client.trainer.server --socket /run/mammofed/trainer.sock /etc/mammofed/site.json

One computation at a time in a process (sites of a process take turns, so memory and threads stay those of one), while
`describe` is answered at once: the service is ready when it answers one. torch is imported only after the thread
settings are in the environment, where its OpenMP reads them.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from client.privacy.egress import released
from client.trainer.config import SiteConfig
from client.trainer.wire import CHANNEL_OPTIONS, METHOD, SERVICE, SITE_KEY, address, chunks, join
from shared_model.alive import Beating
from shared_model.errors import ConfigError, MammoFedError, MessageError

if TYPE_CHECKING:
    from client.trainer.service import TrainerService

GRACE_S = 5.0  # a request that runs longer is dropped on SIGTERM: whatever counts is on the disk already
SPARE_THREADS = 8  # handlers beyond one a site: describes and repeated requests that wait for the running one
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

NOT_HOSTED = "this trainer does not host the site"
TOO_LARGE = "message is too large"
FAILED = "the trainer failed; its own log has the details"
STATUS = {
    NOT_HOSTED: grpc.StatusCode.NOT_FOUND, TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FAILED: grpc.StatusCode.INTERNAL,
}  # fmt: skip
"""All words besides released replies that a caller can get, and the status that they go with."""

log = logging.getLogger("mammofed.trainer")


class _Handler:
    """The one RPC: bytes of a frame in, bytes of its reply out, for the site named in the call's metadata."""

    def __init__(self, services: Mapping[str, TrainerService]) -> None:
        self._services = services

    def exchange(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Answer one request; `context.is_active` tells whether anybody still waits for it.

        Two things can leave: what the egress gate released, and one of the constants of `STATUS`. Without the last
        branch gRPC would send the words of an exception, whatever they are.
        """
        site = dict(context.invocation_metadata()).get(SITE_KEY)
        service = self._services.get(site) if isinstance(site, str) else None
        fault = NOT_HOSTED if service is None else ""
        if service is not None:
            try:
                reply = released(service.exchange(join(requests), wanted=context.is_active))
            except MessageError:
                fault = TOO_LARGE
            except Exception:
                log.exception("%s: a request failed outside its service", site)
                fault = FAILED
        if fault:
            context.abort(STATUS[fault], fault)  # raises
        yield from chunks(reply)

    def register(self, server: grpc.Server) -> None:
        """Add the handler without generated code: both (de)serialisers are the identity on bytes."""
        method = grpc.stream_stream_rpc_method_handler(self.exchange)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))


@contextlib.contextmanager
def listening(
    services: Mapping[str, TrainerService], socket: Path, *, group: str | None = None
) -> Iterator[grpc.Server]:
    """Serve on `socket` until the block ends; used by :func:`main` and by tests.

    Args:
        group: whose members may knock as well (the courier's user is one); None: this user only.

    Raises:
        ConfigError: the path is no free socket, or cannot be bound; or there is no such group, or this user is not in
            it.
    """
    target = address(socket)
    number = None if group is None else _group(group)
    _clear(socket)
    threads = len(services) + SPARE_THREADS
    server = grpc.server(ThreadPoolExecutor(threads, "trainer"), options=CHANNEL_OPTIONS,
                         maximum_concurrent_rpcs=threads)  # fmt: skip
    _Handler(services).register(server)
    before = os.umask(0o177)  # the socket is the border of the patients' side: no other user may knock
    try:
        server.add_insecure_port(target)
        if number is not None:
            os.chown(socket, -1, number)
            socket.chmod(0o660)  # connect(2) asks for the right to write; the group gets no other
    except RuntimeError:
        raise ConfigError("trainer socket: cannot listen there", found=str(socket)) from None
    except PermissionError:
        socket.unlink(missing_ok=True)
        raise ConfigError("trainer socket: it cannot be given to that group", found=group,
                          remedy="make the trainer's user a member of it") from None  # fmt: skip
    finally:
        os.umask(before)
    server.start()
    try:
        yield server
    finally:
        server.stop(GRACE_S).wait(GRACE_S)
        socket.unlink(missing_ok=True)


def _clear(socket: Path) -> None:
    """Remove the socket that a killed trainer left behind; anything else in its place is not ours to remove."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(socket.stat().st_mode):
            raise ConfigError("trainer socket: something else lies there", found=str(socket), expected="a free path")
        socket.unlink()


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError("trainer socket: there is no such group", found=name,
                          remedy="make it, and put the users of trainer and courier into it") from None  # fmt: skip


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m client.trainer.server", description=__doc__)
    parser.add_argument("sites", nargs="+", type=Path, metavar="SITE.JSON", help="configuration of each hosted site")
    parser.add_argument("--socket", required=True, type=Path, help="Unix socket to listen on (absolute path)")
    parser.add_argument("--group", help="group that may use the socket as well: the courier's, if it is another user")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads; 1 where processes share the cores")
    parser.add_argument("--alive", type=Path, metavar="FOLDER",
                        help="touch a file for each hosted site there while the process is alive (on one machine)")
    parser.add_argument("--stop-with-stdin", action="store_true", help="end when the starting process goes away")
    return parser.parse_args(arguments)


def _prepare_threads(threads: int) -> None:
    if "torch" in sys.modules:
        raise ConfigError("torch was imported before the thread settings", remedy="start the trainer as a process")
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "passive"  # spinning threads of neighbours cost six- to elevenfold


def _services(paths: Sequence[Path]) -> dict[str, TrainerService]:
    from client.trainer.models import WarmModels
    from client.trainer.service import TrainerService

    lock, models = threading.Lock(), WarmModels()
    configs = [SiteConfig.read(path) for path in paths]
    names = [config.site for config in configs]
    if len(set(names)) != len(names):
        raise ConfigError("a trainer cannot host a site twice", found=names)
    return {config.site: TrainerService(config, compute=lock, models=models) for config in configs}


def _watch_stdin(stop: threading.Event) -> None:
    while sys.stdin.buffer.read(1 << 12):
        pass
    stop.set()


def _warm(services: Iterable[TrainerService]) -> None:
    for service in services:
        service.warm()


def serve(
    sites: Sequence[Path], socket: Path, *, stop: threading.Event, ready: Callable[[], None] | None = None,
    group: str | None = None, alive: Path | None = None,
) -> None:  # fmt: skip
    """Host the parties of `sites` on `socket` until `stop` is set. Threads and torch must be settled before.

    Args:
        ready: called once requests are answered.
        alive: folder for signs of life (`shared_model.alive`); None: nobody looks for them.

    Raises:
        MammoFedError: a site cannot be opened, or the socket cannot be bound.
    """
    services = _services(sites)
    beating = contextlib.nullcontext() if alive is None else Beating(alive, services)
    with listening(services, socket, group=group), beating:
        threading.Thread(target=_warm, args=(services.values(),), daemon=True).start()
        log.info("ready: %s", ", ".join(f"{name} ({s.device})" for name, s in services.items()))
        if ready is not None:
            ready()
        stop.wait()
        log.info("stopping")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        _prepare_threads(options.threads)
        import torch

        torch.set_num_threads(options.threads)
        if options.stop_with_stdin:
            threading.Thread(target=_watch_stdin, args=(stop,), daemon=True).start()
        serve(options.sites, options.socket, stop=stop, group=options.group, alive=options.alive)
    except MammoFedError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # a computation that outlived the grace must not hold the process: all that counts is on the disk
