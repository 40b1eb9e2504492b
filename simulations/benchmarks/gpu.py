"""A private step on a GPU against one core of the CPU, and against other ways on the GPU; a bench section.

Whole steps (gradients, noise, optimiser) as `dp_engines` has them, of as many women as the trainer loads at a time. The
ways on the GPU take turns in random order, each waited for; the CPU's core makes steps of eight women. Every woman has
four films and no pass is filled up: the best case of passes of one size.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

from client.training.engines import BatchGradient, repeatable
from client.training.hooks import OpacusEngine
from client.training.local import LOAD_BYTES
from client.training.loop import LoopEngine
from shared_model.errors import MammoFedError
from simulations.benchmarks.dp_engines import Case, Step, make_model, plain_step, private_step, women
from simulations.benchmarks.table import Row

MOST, CORE = 64, 8  # women of a step: at most on the GPU, and on the CPU's core
TURNS, WARM = 5, 2  # turns that count, and those before them
CASES = (
    Case(size="small", height=224, width=224),
    Case(size="medium", height=512, width=256),
    Case(size="full", height=1024, width=512),
)
PRIVATE, PLAIN = "private", "without privacy"


def measure(cases: tuple[Case, ...] = CASES) -> list[Row]:
    """Rows of each case: patients a second of every way, and the memory that the GPU gave at most.

    Raises:
        MammoFedError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise MammoFedError("torch sees no NVIDIA GPU", remedy="`mammofed site doctor` says what it sees")
    with repeatable():
        return [row for case in cases for row in _rows(case)]


def _rows(case: Case) -> list[Row]:
    count = max(1, min(MOST, LOAD_BYTES // (4 * 4 * 2 * case.height * case.width)))  # four films of two channels
    seconds, memory = _on_the_gpu(case, count)
    rate = {name: count / value for name, value in seconds.items()}
    title = f"{case.name}, {count} women"
    first = Row(name=f"{title}, {PRIVATE}", value=rate[PRIVATE], unit="patients/s",
                ratio=rate[PRIVATE] / _on_a_core(case), against="one core of the CPU")  # fmt: skip
    others = [
        Row(name=f"{title}, {name}", value=value, unit="patients/s", ratio=value / rate[PRIVATE], against=PRIVATE)
        for name, value in rate.items() if name != PRIVATE
    ]  # fmt: skip
    return [first, *others, *(Row(name=f"{title}, {name}", value=value, unit="GiB") for name, value in memory.items())]


def ways(case: Case, count: int, device: torch.device) -> Mapping[str, Step]:
    """Each way's step, on its own copy of the model."""
    batch = women(case, count).to(device)

    def private(engine: LoopEngine | OpacusEngine) -> Step:
        return private_step(make_model(case).to(device), batch, engine)

    def plain(engine: BatchGradient) -> Step:
        return plain_step(make_model(case).to(device), batch, engine)

    return {
        PRIVATE: private(LoopEngine()),
        "private, one woman at a time": private(LoopEngine(grouped=False)),
        "private, hooks": private(OpacusEngine()),
        "private, hooks, bf16": private(OpacusEngine(precision="bf16")),
        PLAIN: plain(BatchGradient()),
        f"{PLAIN}, bf16": plain(BatchGradient(precision="bf16")),
    }


def _on_the_gpu(case: Case, count: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each way's step, and the most memory of those that a study takes."""
    steps = ways(case, count, torch.device("cuda"))
    taken: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for turn in range(WARM + TURNS):
        for name in order.sample(sorted(steps), len(steps)):
            value = _seconds(steps[name], torch.cuda.synchronize)
            if turn >= WARM:
                taken[name].append(value)
    memory = {}
    for name in (PRIVATE, "private, hooks", PLAIN):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[name]()
        memory[f"{name}, memory"] = (torch.cuda.max_memory_allocated() - before) / 2**30
    return {name: median(values) for name, values in taken.items()}, memory


def _on_a_core(case: Case) -> float:
    """Patients a second of one core, as the trainer has them: channels last, in groups where films are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = make_model(case).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        step = private_step(model, women(case, CORE), LoopEngine())
        return CORE / min(_seconds(step) for _ in range(2))
    finally:
        torch.set_num_threads(threads)


def _seconds(step: Step, wait: Callable[[], None] = lambda: None) -> float:
    wait()
    began = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - began
