"""What privacy costs: the loop engine against training without privacy and against stock Opacus hooks; a bench section.

Whole steps (gradients, noise, optimiser) on the same model and the same women with four films each, in CPU seconds of
one thread. The three take turns in random order, and a ratio is the median of the ratios within the turns, so that a
busy moment of the machine meets all of them. Memory is the peak above what the loaded process had, each in its own
process.
"""

from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from client.privacy.randomness import SecureRandomness
from client.training.engines import BatchGradient, GradientEngine, PatientLoss, fold_views, trainable
from client.training.loop import LoopEngine
from client.training.update import add_noise, clip_by_norm
from shared_model.cohort.batch import VIEWS, PatientBatch
from shared_model.errors import MammoFedError
from shared_model.fusion import FusionConfig, FusionModel, build_model, patient_loss_B
from shared_model.fusion.config import IMAGE_CHANNELS, Size
from shared_model.protocol import LossTerms
from simulations.benchmarks.table import Row

PATIENTS, FEATURES, TURNS, MEMORY_STEPS = 16, 40, 5, 2
CLIP, SIGMA, RATE = 1.0, 1.0, 0.01
WAYS = ("private", "plain", "hooks")
Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and film size with what was promised for it (None: nothing was); see `measure`."""

    size: Size
    height: int
    width: int
    of_plain: float | None = None
    of_hooks: float | None = None
    memory: float | None = None

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.size} {self.height} x {self.width}"


CASES = (
    Case(size="tiny", height=112, width=84),  # the quick study's films
    Case(size="tiny", height=128, width=128, of_plain=0.5, of_hooks=1.6, memory=0.4),
    Case(size="small", height=128, width=128, of_plain=0.5, of_hooks=1.6, memory=0.4),
    Case(size="tiny", height=224, width=224, of_plain=0.75, of_hooks=1.6, memory=0.3),
    Case(size="small", height=224, width=224, of_plain=0.75, of_hooks=1.6, memory=0.3),
    Case(size="small", height=512, width=256, of_plain=0.75, of_hooks=2.2, memory=0.2),
)


def measure(cases: tuple[Case, ...] = CASES, *, turns: int = TURNS) -> list[Row]:
    """Three rows a case: private speed against training without privacy and against stock hooks; extra memory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for case in cases for row in (*speed(case, turns=turns), memory(case))]
    finally:
        torch.set_num_threads(threads)


def speed(case: Case, *, turns: int) -> list[Row]:
    """Private patients a CPU second, and how many times the other two that is."""
    steps = {way: make_step(case, way) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    order = random.Random(0)
    for turn in range(turns + 1):
        for way in order.sample(WAYS, len(WAYS)):
            began = time.process_time()
            steps[way]()
            if turn:  # the first turn fills caches
                seconds[way].append(time.process_time() - began)
    rate = PATIENTS / median(seconds["private"])
    ratio = {
        way: median(other / own for own, other in zip(seconds["private"], seconds[way], strict=True)) for way in WAYS
    }
    name, unit = f"{case.name}, private", "patients/s"
    return [
        Row(name=name, value=rate, unit=unit, ratio=ratio["plain"], against="without privacy", at_least=case.of_plain),
        Row(name=name, value=rate, unit=unit, ratio=ratio["hooks"], against="stock Opacus hooks",
            at_least=case.of_hooks),
    ]  # fmt: skip


def memory(case: Case) -> Row:
    """Extra memory of private steps, against those of stock hooks."""
    megabytes = {way: _in_a_process(case, way) for way in ("private", "hooks")}
    return Row(
        name=f"{case.name}, extra memory", value=megabytes["private"], unit="MB",
        ratio=megabytes["private"] / megabytes["hooks"], against="stock Opacus hooks", at_most=case.memory,
    )  # fmt: skip


def make_step(case: Case, way: str) -> Step:
    """One whole step of `private`, `plain` (without privacy) or `hooks` (stock Opacus) on its own copy of the model."""
    model, batch = make_model(case), women(case, PATIENTS)
    if way == "hooks":
        return _hooks_step(model, batch, make_loss())
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return private_step(model, batch, LoopEngine()) if way == "private" else plain_step(model, batch, BatchGradient())


def make_loss() -> PatientLoss:
    """The loss of a fusion phase."""
    terms = LossTerms(kind="bce", prevalence=0.3, pos_weight=2.0, focal_gamma=2.0, focal_alpha=0.5, auxiliary=0.5)
    return functools.partial(patient_loss_B, terms=terms, objective="fusion")


def private_step(model: FusionModel, batch: PatientBatch, engine: GradientEngine) -> Step:
    """Clipped gradients of patients, noise, SGD."""
    randomness, parameters, loss = SecureRandomness(), trainable(model), make_loss()
    optimizer = torch.optim.SGD(parameters, lr=RATE)

    def step() -> None:
        sums = engine.clipped_sum(model, batch, clip=CLIP, loss=loss).sums
        add_noise(sums, std=SIGMA * CLIP, randomness=randomness)
        _apply(optimizer, parameters, sums)

    return step


def plain_step(model: FusionModel, batch: PatientBatch, engine: BatchGradient) -> Step:
    """The same without privacy."""
    parameters, loss = trainable(model), make_loss()
    optimizer = torch.optim.SGD(parameters, lr=RATE)

    def step() -> None:
        sums = engine.gradient_sum(model, batch, loss=loss).sums
        clip_by_norm(sums, bound=PATIENTS * CLIP)
        _apply(optimizer, parameters, sums)

    return step


def _apply(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], sums: list[torch.Tensor]) -> None:
    torch._foreach_div_(sums, float(PATIENTS))
    for parameter, gradient in zip(parameters, sums, strict=True):
        parameter.grad = gradient
    optimizer.step()


def _hooks_step(model: FusionModel, batch: PatientBatch, loss: PatientLoss) -> Step:
    """Opacus as its documentation has it, except that views go one after another: folded, its gradients are wrong."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    fold_views(model, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooked = GradSampleModule(model, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=RATE), noise_multiplier=SIGMA, max_grad_norm=CLIP,
        expected_batch_size=PATIENTS, loss_reduction="mean",
    )  # fmt: skip

    def step() -> None:
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # films need no gradient: Opacus' hook on the first layer says so each time
            torch.autograd.backward(loss(hooked(batch), batch).sum())
        optimizer.step()

    return step


def make_model(case: Case) -> FusionModel:
    """A model of the case, new."""
    config = FusionConfig(
        size=case.size, fusion="gated", n_clinical=FEATURES, height=case.height, width=case.width
    )
    return build_model(config, seed=0, prevalence=0.3).train()


def women(case: Case, count: int) -> PatientBatch:
    """Random numbers in the place of films: what is measured does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    films = torch.rand(count, len(VIEWS), IMAGE_CHANNELS, case.height, case.width, generator=generator)
    everything = torch.ones(count, len(VIEWS), dtype=torch.bool)
    table = torch.randn(count, FEATURES, generator=generator)
    return PatientBatch(films, everything, table, everything[:, 0], (torch.arange(count) % 3 == 0).float())


def _in_a_process(case: Case, way: str) -> float:
    """Peak memory of some steps in MB above the process with model and women loaded."""
    arguments = [sys.executable, "-m", "simulations.benchmarks.dp_engines", way, json.dumps(asdict(case))]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    if done.returncode:
        raise MammoFedError(f"memory of {way} could not be measured", found=done.stderr.strip().splitlines()[-1:])
    return float(done.stdout)


def _peak_megabytes(case: Case, way: str) -> float:
    torch.set_num_threads(1)
    make_step(replace(case, height=48, width=48), way)()  # code that is imported by the first step is not training's
    step = make_step(case, way)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of loading (proc(5))
    before = _status("VmRSS")
    for _ in range(MEMORY_STEPS):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.stdout.write(f"{_peak_megabytes(Case(**json.loads(sys.argv[2])), sys.argv[1])}\n")
