"""What one Ray actor does with a message: wait for the party's turn, take its state, compute, let go of the state.

Any actor may get any party's message. Model, cohort and accountant stay warm in each actor; the party's state (ledger,
stored replies) is on the disk alone, and is held only while a message is computed, so no two actors ever have it.
Imports torch: only inside actors.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.app import Message

from client.app import content_of
from client.trainer.config import SiteConfig
from client.trainer.service import TrainerService, without_identity
from shared_model.errors import ConfigError, MammoFedError, TrainerError
from shared_model.messages import ErrorReply, Frame
from simulations.engine.library import answer
from simulations.engine.pool import in_order

POLL_S = 0.02
KEPT_SERVICES = 32  # parties that stay warm in an actor, each with a model or two; the one used longest ago goes first
THREADS = 1         # as trainer processes have: the thread count is part of what makes the same bits

log = logging.getLogger("mammofed.trainer")


class Actor:
    """The parties of the study in `run_dir`, for one process.

    Raises:
        ConfigError: a party's `site.json` is absent or wrong.
    """

    def __init__(self, run_dir: Path) -> None:
        torch.set_num_threads(THREADS)
        configs = [SiteConfig.read(path) for path in sorted((run_dir / "sites").glob("*/site.json"))]
        named = {config.site: config for config in configs}
        self._parties = [named[name] for name in in_order(configs)]
        self._services: dict[str, TrainerService] = {}
        self._compute = threading.Lock()

    def answer(self, message: Message, number: int) -> Message:
        """Answer for party `number`; whatever goes wrong on purpose becomes an `ErrorReply` in words."""
        until = message.metadata.created_at + message.metadata.ttl
        try:
            config = self._party(number)
            with _turn(config, until=until), self._open(config) as service:
                return answer(service, message)
        except MammoFedError as error:
            log.warning("party %s: %s", number, error)
            paths = [path for c in self._parties for path in (c.cohort, c.state, c.protocols)]
            reply = Frame(ErrorReply(code=error.exit_code, reason=without_identity(str(error), paths=paths)))
            return Message(content_of(reply), reply_to=message)

    def _party(self, number: int) -> SiteConfig:
        if not 0 <= number < len(self._parties):
            raise ConfigError("there are more simulated nodes than parties", found=f"node {number}",
                              expected=f"{len(self._parties)} parties")  # fmt: skip
        return self._parties[number]

    @contextmanager
    def _open(self, config: SiteConfig) -> Iterator[TrainerService]:
        """The party's service with its state in hand."""
        service = self._services.pop(config.site, None)
        if service is None:
            while len(self._services) >= KEPT_SERVICES:
                self._services.pop(next(iter(self._services)))
            service = TrainerService(config, compute=self._compute)
        else:
            service.open()
        self._services[config.site] = service  # at the end of the dict: the one used last goes last
        try:
            yield service
        finally:
            service.close()


@contextmanager
def _turn(config: SiteConfig, *, until: float) -> Iterator[None]:
    """Wait until no actor computes for this party; a message whose time is over is not begun, and costs no epsilon.

    The state's own lock refuses at once, as it must at a hospital, where a second trainer is a mistake. Here it is a
    request that came again while its first one, given up by the coordinator, is still computed.

    Args:
        until: seconds since 1970.
    """
    try:
        config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        stream = (config.state / ".turn").open("w")
    except OSError as error:
        raise TrainerError(f"the state of {config.site} cannot be used", found=error.strerror) from None
    with stream:
        while True:
            if time.time() >= until:
                raise TrainerError(f"the message for {config.site} has outlived its time; nothing was done",
                                   remedy="give rounds more time, or start more actors")  # fmt: skip
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL_S)
        yield
