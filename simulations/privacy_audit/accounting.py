"""Whether the epsilon that a site says is that of everything it has released so far, over restarts.

A trainer of the hospital answers rounds of the study, closed and opened again after each, as a process that dies would
be. What it says after round r must not be below the epsilon of r rounds, worked out here from the protocol alone, by
the accountant and by the privacy loss distributions of `dp-accounting`. An accountant that begins anew each round says
the same each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from client.privacy.verify import AGREE, pld_epsilon
from client.trainer.config import SiteConfig
from client.trainer.service import TrainerService
from shared_model.errors import MammoFedError
from shared_model.messages import ErrorReply, Frame, TrainReply, TrainRequest, decode, encode, weights_sha256
from shared_model.protocol import Protocol
from simulations.privacy_audit.finding import Finding, Verdict
from simulations.privacy_audit.subject import account_of

ROUNDS = 3


def check_accounting(
    config: SiteConfig, protocol: Protocol, arrays: Mapping[str, NDArray[np.float32]], *,
    tick: Callable[[], None] = lambda: None,
) -> list[Finding]:  # fmt: skip
    """Have the trainer answer the first rounds and compare. config: a trainer whose state is empty.

    arrays: the study's initial weights, which are asked about in every round.
    """
    delta = protocol.privacy.delta
    said, due, second = [], [], []
    for number in range(1, min(ROUNDS, protocol.rounds) + 1):
        reply = ask(config, protocol, arrays, number)
        if isinstance(reply, str):
            return [_finding(Verdict.BROKEN, f"round {number} was not answered: {reply}", {})]
        said.append(reply.privacy.epsilon if reply.privacy is not None else 0.0)
        due.append(account_of(protocol, number).epsilon(delta=delta))
        second.append(pld_epsilon(account_of(protocol, number), delta=delta))
        tick()
    wrong = [number for number, (a, b) in enumerate(zip(said, due, strict=True), 1) if a < b * (1 - AGREE)]
    apart = max(abs(a / b - 1) for a, b in zip(due, second, strict=True))
    figures = {**{f"said_{n}": value for n, value in enumerate(said, 1)},
               **{f"due_{n}": value for n, value in enumerate(due, 1)},
               **{f"pld_{n}": value for n, value in enumerate(second, 1)}}  # fmt: skip
    if wrong:
        return [_finding(Verdict.BROKEN, f"after round {wrong[0]} the site says epsilon {said[wrong[0] - 1]:.3f}, and "
                         f"has spent {due[wrong[0] - 1]:.3f}", figures)]  # fmt: skip
    if apart > AGREE:
        return [_finding(Verdict.BROKEN, f"two accountants differ by {apart:.1%}", figures)]
    words = ", ".join(f"{value:.3f}" for value in said)
    return [_finding(Verdict.HELD, f"over {len(said)} rounds and as many restarts the site says {words}, which is what "
                     f"it spent; a second accountant (PLD) agrees to {apart:.2%}", figures)]  # fmt: skip


def ask(
    config: SiteConfig, protocol: Protocol, arrays: Mapping[str, NDArray[np.float32]], number: int
) -> TrainReply | str:
    """One round by a trainer that is opened for it and closed again; why not, in words, where it refuses."""
    request = TrainRequest(study=protocol.study, protocol_sha256=protocol.sha256, round=number, attempt=1,
                           weights_sha256=weights_sha256(arrays))  # fmt: skip
    try:
        service = TrainerService(config, compute=threading.Lock())
    except MammoFedError as error:
        return str(error)
    try:
        reply = decode(service.exchange(encode(Frame(request, arrays)), wanted=lambda: True)).message
    finally:
        service.close()
    if isinstance(reply, TrainReply) and reply.outcome == "trained":
        return reply
    return reply.reason if isinstance(reply, ErrorReply | TrainReply) else type(reply).__name__


def _finding(verdict: Verdict, words: str, figures: Mapping[str, float]) -> Finding:
    return Finding(check="accounting", title="accounting over rounds and restarts", verdict=verdict, words=words,
                   figures=figures)  # fmt: skip
