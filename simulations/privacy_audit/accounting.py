"""Whether the epsilon that a site says is that of everything it has released so far, over restarts.

A trainer of the hospital answers rounds of the study, closed and opened again after each, as a process that dies would
be. What it says after round r must not be below the epsilon of r rounds, worked out here from the protocol alone, by
the accountant and, where `dp-accounting` is installed, by that library's privacy loss distributions. An accountant that
begins anew each round says the same each time.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from client.privacy.accountant import Account
from client.trainer.config import SiteConfig
from client.trainer.service import TrainerService
from shared_model.errors import MammoFedError
from shared_model.messages import ErrorReply, Frame, TrainReply, TrainRequest, decode, encode, weights_sha256
from shared_model.protocol import Protocol
from simulations.privacy_audit.finding import Finding, Verdict

ROUNDS = 3
AGREEMENT = 0.01  # relative: both accountants give upper bounds, which differ by their grids


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
        due.append(_account(protocol, number).epsilon(delta=delta))
        second.append(pld_epsilon(_account(protocol, number), delta=delta))
        tick()
    wrong = [number for number, (a, b) in enumerate(zip(said, due, strict=True), 1) if a < b * (1 - AGREEMENT)]
    both = [b for b in second if b is not None]
    apart = max((abs(a / b - 1) for a, b in zip(due, both, strict=False)), default=0.0)
    figures = {**{f"said_{n}": value for n, value in enumerate(said, 1)},
               **{f"due_{n}": value for n, value in enumerate(due, 1)},
               **{f"pld_{n}": value for n, value in enumerate(both, 1)}}  # fmt: skip
    if wrong:
        return [_finding(Verdict.BROKEN, f"after round {wrong[0]} the site says epsilon {said[wrong[0] - 1]:.3f}, and "
                         f"has spent {due[wrong[0] - 1]:.3f}", figures)]  # fmt: skip
    if apart > AGREEMENT:
        return [_finding(Verdict.BROKEN, f"two accountants differ by {apart:.1%}", figures)]
    checked = f"a second accountant (PLD) agrees to {apart:.2%}" if both else "dp-accounting is not installed"
    words = ", ".join(f"{value:.3f}" for value in said)
    return [_finding(Verdict.HELD, f"over {len(said)} rounds and as many restarts the site says {words}, which is what "
                     f"it spent; {checked}", figures)]  # fmt: skip


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


def _account(protocol: Protocol, rounds: int) -> Account:
    account = Account()
    for sigma, rate, steps in protocol.mechanisms(rounds):
        account = account.add(noise_multiplier=sigma, sample_rate=rate, steps=steps)
    return account


def pld_epsilon(account: Account, *, delta: float) -> float | None:
    """The same by dp-accounting's privacy loss distributions; None where that library is not installed."""
    if importlib.util.find_spec("dp_accounting") is None:
        return None
    from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for sigma, rate, steps in account.rows:
        accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps))
    return float(accountant.get_epsilon(delta))


def _finding(verdict: Verdict, words: str, figures: Mapping[str, float]) -> Finding:
    return Finding(check="accounting", title="accounting over rounds and restarts", verdict=verdict, words=words,
                   figures=figures)  # fmt: skip
