"""Where the seconds of one site's round went, as the coordinator reckons them; made by `attempt`, kept by the journal.

A trainer measures its own part; the coordinator measures the round trip, from the sending of the request to the arrival
of the reply. Both are durations by one clock each. What is left of the trip is `send`: transfer both ways, Flower's
turns to look for messages (3 s at either end of a deployed study), and the checks on the way out of the site.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shared_model.phases import STEPS, PhaseSeconds, told

# A trip and the site's own part are rounded each: up to so much more is rounding.
_ROUNDING, _LEAST_S = 10 ** (2 / STEPS), 0.01


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Seconds >= 0 as `shared_model.phases.told` tells them. round_trip: of the request to train, and of the steps of
    its secure sum; None: nothing came. wait to mask: as the site says, None where it does not. send: what is left of
    the trip; None where that is not known.
    """

    round_trip: float | None = None
    wait: float | None = None
    load: float | None = None
    train: float | None = None
    mask: float | None = None
    send: float | None = None


def phases_of(
    own: PhaseSeconds | None, *, trip: float, waited: float = 0.0, summed: tuple[float, float] = (0.0, 0.0),
    coarse: bool,
) -> Phases:  # fmt: skip
    """The phases of one answer.

    A site that is asked a second time sends the reply that it kept. Its seconds are those of the first time, and where
    they do not fit into this trip, nothing is said of its sending.

    Args:
        own: what the site says; None: it says nothing.
        trip: seconds between request and reply.
        waited: of them, what the message waited before the trainer had it, as its carrier says.
        summed: of the steps of a secure sum: seconds at the site, seconds of the trips.
        coarse: `Protocol.coarse_times`.
    """
    trip += summed[1]
    whole = told(trip, coarse=coarse)
    if own is None:
        return Phases(round_trip=whole)
    wait = told(own.wait + min(max(0.0, waited), max(0.0, trip - own.total)), coarse=coarse)
    load, train, mask = (told(part, coarse=coarse) for part in (own.load, own.train, own.mask + summed[0]))
    taken = wait + load + train + mask
    known = Phases(round_trip=whole, wait=wait, load=load, train=train, mask=mask)
    if taken > trip * _ROUNDING + _LEAST_S:
        return known
    send = told(max(0.0, trip - taken), coarse=coarse)
    return replace(known, send=send, round_trip=max(whole, round(taken + send, 3)))  # parts that were rounded up
