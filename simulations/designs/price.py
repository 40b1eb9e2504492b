"""What a design costs a woman in epsilon, before it starts, and the noise that keeps it within its budget.

Every training is a release about the women whom it trained on, and releases compose. Two ways to ask for it
(`design.epsilon`): null keeps *all* trainings of a woman together within `privacy.epsilon`, so that each has more noise
than a study by itself; a number grants the sum that much, and each training has the noise of a study by itself. What
is granted is the budget of the sites' ledgers, which go on from run to run: they refuse what would exceed it, whatever
is written here. :func:`price_of` imports Opacus; :func:`price_in_child` has a process of its own do so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from typing import Any

from client.privacy.accountant import Account
from shared_model.errors import PrivacyError
from simulations.designs.plans import Run, composed, releases
from simulations.plan import Config, noise_multipliers, phases

POLL_S = 0.2
OF_A_PHASE, OF_ITS_SCALE, OF_THE_SUM = 8, 5, 2  # about how often the accountant is asked: what a bar is long

_told: Queue[None] | None = None  # in the child: an item for each question to the accountant


@dataclass(frozen=True, kw_only=True)
class Price:
    """What was declared before the first run.

    sigmas: noise multiplier of each phase, zeros without privacy. mechanisms: (sigma, q, steps) of one run's phases.
    releases: by site, trainings of its most often trained-on woman. one: epsilon of a single run. together: by site, of
    all. granted: the budget for it. delta: of all of them. None: without differential privacy.
    """

    sigmas: tuple[float, ...]
    mechanisms: tuple[tuple[float, float, int], ...]
    releases: Mapping[str, int]
    one: float | None
    together: Mapping[str, float] | None
    granted: float | None
    delta: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for the plan's file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Price:
        """What :meth:`to_json` gave."""
        rows = tuple((float(s), float(q), int(n)) for s, q, n in values["mechanisms"])
        return cls(**{**values, "sigmas": tuple(values["sigmas"]), "mechanisms": rows})


def price_in_child(config: Config, runs: Sequence[Run], advance: Callable[[int, int | None], None]) -> Price:
    """:func:`price_of` in a process of its own, which says how far it is.

    Args:
        advance: is told how often the accountant was asked, and about how often it will be.

    Raises:
        PrivacyError: as :func:`price_of`.
    """
    context, parts = get_context("spawn"), len(config["training"]["phases"])
    told: Queue[None] = context.Queue()
    asked, about = 0, OF_A_PHASE * parts + (OF_ITS_SCALE if parts > 1 else 0) + OF_THE_SUM
    with ProcessPoolExecutor(1, context, _begin, (told,)) as child:
        price = child.submit(_price_and_tell, config, runs)
        while wait((price,), timeout=POLL_S).not_done:
            while not told.empty():
                told.get()
                asked += 1
            advance(asked, max(about, asked + 1))
        return price.result()


def _begin(told: Queue[None]) -> None:
    global _told
    _told = told


def _price_and_tell(config: Config, runs: Sequence[Run]) -> Price:
    assert _told is not None
    told = _told
    return price_of(config, runs, asked=lambda: told.put(None))


def price_of(config: Config, runs: Sequence[Run], *, asked: Callable[[], None] = lambda: None) -> Price:
    """Noise and epsilon of a design.

    Args:
        asked: called before each question to the accountant.

    Raises:
        PrivacyError: the sites' budget would not cover the sum; nothing was started.
    """
    times, privacy = releases(runs), config["privacy"]
    most = max(times.values())
    if privacy["mode"] == "none":
        return Price(sigmas=noise_multipliers(config), mechanisms=(), releases=times, one=None, together=None,
                     granted=None, delta=None)  # fmt: skip
    grant = config["design"]["epsilon"]
    sigmas = noise_multipliers(config, releases=most if grant is None else 1, asked=asked)
    delta, granted = float(privacy["delta"]), float(privacy["epsilon"] if grant is None else grant)
    terms, training = phases(config), config["training"]
    mechanisms = tuple(
        (sigma, float(phase.get("sample_rate") or training["sample_rate"]),
         phase["rounds"] * int(phase.get("steps_per_round") or training["steps_per_round"]))
        for sigma, phase in zip(sigmas, terms, strict=True)
    )  # fmt: skip
    asked()
    together = composed(mechanisms, runs, delta=delta)
    worst = max(together.values())
    if worst > granted:
        raise PrivacyError(
            f"all trainings together would bring a woman to epsilon {worst:.2f}: she takes part in {most}",
            found=f"a budget of {granted:g} at delta {delta:g}", expected=f"at least {worst:.2f} for the sum",
            remedy=f"grant it: design.epsilon={worst + 0.05:.1f}; or leave design.epsilon=null, so that all trainings "
                   "together stay within privacy.epsilon",
        )  # fmt: skip
    asked()
    one = Account.from_lists(mechanisms).epsilon(delta=delta)
    return Price(sigmas=sigmas, mechanisms=mechanisms, releases=times, one=one, together=together, granted=granted,
                 delta=delta)  # fmt: skip
