"""Bad connections between courier and trainer: cut, half-open, slow, late, doubled; the bits stay the same.

The proxy stands on the Unix socket of one site, in a process of its own. `engine=local` has no other connection; the
same proxy takes `host:port` for a deployment's.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from simulations.faults.case import Case
from simulations.faults.ending import Ending, judge_private, same_model
from simulations.faults.lab import SITES
from simulations.faults.process import Port, Process
from simulations.faults.proxy import MBIT, Fault, Proxy
from simulations.faults.scene import Scene, Unmet

VICTIM, PROXY = SITES[0], "proxy"
# Requests and replies of training are larger than this, all others smaller.
INTO_A_REPLY = 20_000
FAULTS = {
    "cut-in-a-reply": Fault(cut_down_after=INTO_A_REPLY), "cut-in-a-request": Fault(cut_up_after=INTO_A_REPLY),
    "latency": Fault(latency_s=0.02), "1-mbit": Fault(bytes_per_s=MBIT), "doubled": Fault(double=True),
}  # fmt: skip
# Connections; later ones are good, or nothing would ever come through. Each call is two, of which the first, a look for
# a listener, carries nothing: the roll call, and two of the three attempts of round 1.
SPOILED = 6


def network_cases() -> list[Case]:
    """Every fault without privacy, to the bit; the doubled connection under privacy too: it is charged once."""
    cases = [Case(name=f"network/{VICTIM}/{name}", play=partial(play, fault=fault), judge=same_model)
             for name, fault in FAULTS.items()]  # fmt: skip
    doubled = Case(name=f"network-private/{VICTIM}/doubled", play=partial(play, fault=FAULTS["doubled"]),
                   judge=judge_private, flavour="private")  # fmt: skip
    half = Case(name=f"network/{VICTIM}/half-open", play=partial(play, fault=Fault(half_open_after=INTO_A_REPLY)),
                judge=late_then_there, flavour="hasty")  # fmt: skip
    return [*cases, doubled, half]


def play(scene: Scene, *, fault: Fault) -> str:
    """Run the study with a proxy before one trainer that spoils the first connections.

    Raises:
        Unmet: the proxy did not start, or no attempt failed although connections were to be cut.
    """
    inner = scene.sockets[VICTIM].with_suffix(".inner")
    scene.trainer_sockets[VICTIM] = inner
    process = Process(PROXY, partial(_serve, str(scene.sockets[VICTIM]), str(inner), fault),
                      log=scene.folder / "proxy.log")  # fmt: skip
    scene.processes[PROXY] = process
    if process.note("ready") is None:
        raise Unmet("the proxy did not start")
    scene.start()
    scene.complete()
    failed = scene.attempts(1) - 1
    if bool(failed) != (fault.cut_up_after is not None or fault.cut_down_after is not None):
        raise Unmet("the connections were spoiled in another way", found=f"{failed} attempts of round 1 failed")
    return f"{failed} attempts failed"


def _serve(listen: str, target: str, fault: Fault, port: Port) -> int:
    async def serve() -> None:
        async with Proxy(listen, target, [fault] * SPOILED):
            port.tell("ready")
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    return 0


def late_then_there(found: Ending, _: Ending) -> list[str]:
    """A connection that is dead and does not say so costs its site a round, by the deadline, and not the study."""
    outcomes = [found.participation[number][VICTIM] for number in sorted(found.participation)]
    good = found.status == "COMPLETE" and set(outcomes) <= {"contributed", "late", "failed"}
    return [] if good and outcomes[-1] == "contributed" else [f"{found.status}: {', '.join(outcomes)}"]
