"""`mammofed privacy plan`: what a budget buys, in noise and in AUC, before anybody spends it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.privacy.accountant import Account
from shared_model.errors import ConfigError
from simulations.composition import compose_study
from simulations.plan import Config, noise_multipliers, phases, rounded
from simulations.privacy_plan.measured import Loss, Measured, read_table
from simulations.privacy_plan.noise import index_of

USEFUL_LOSS = 0.02     # that "you need N women" is said for, unless another is asked for
MOST_PATIENTS = 1_000_000
MEASURED_SCOPE = "linear"
REHEARSE = ("No estimate of AUC: the table was measured for the shipped private recipe (scope linear), and this study "
            "trains more. Rehearse it: mammofed simulate with these overrides")  # fmt: skip
RECIPE = ("some 0.02 more: the private recipe trains less, as noise would drown the rest (reference study, "
          "1,500 women, epsilon 8: recipe and noise together 0.025; simulations/README.md)")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A study's noise and what it costs.

    patients: training women at all sites; sizes: of each site, rounded and public. sigmas, rates, steps: of each phase,
    steps over all its rounds. batch: expected women in a step at the smallest site. epsilon: of the whole study at
    delta; other_deltas: the same at other deltas. twice: epsilon of a woman who trains at two of the sites. index: see
    `noise`. loss: None where the recipe is another than the measured one. needed: women at all sites for a loss of at
    most `limit`; None where no number up to a million suffices. useful: whether noise takes less than training adds.
    """

    patients: int
    sizes: tuple[int, ...]
    rounds: int
    sigmas: tuple[float, ...]
    rates: tuple[float, ...]
    steps: tuple[int, ...]
    batch: float
    epsilon: float
    delta: float
    other_deltas: dict[str, float]
    twice: float
    index: float
    loss: Loss | None
    limit: float
    needed: int | None
    useful: bool


def plan_budget(
    *, patients: int, sites: int, overrides: Sequence[str], limit: float = USEFUL_LOSS, json_path: Path | None = None,
    console: Console | None = None,
) -> Budget:  # fmt: skip
    """Work it out, print it, and write it as JSON where asked for.

    Raises:
        ConfigError: a setting, or a study without privacy.
        PrivacyError: no noise up to a multiplier of 1000 keeps the epsilon.
    """
    console = console or Console()
    if patients < sites:
        raise ConfigError("--patients: fewer than there are sites", found=patients, expected=f"at least {sites}")
    config = {**compose_study(["privacy=patient", *overrides]), "sites": sites}
    if config["privacy"]["mode"] != "patient":
        raise ConfigError("a study without privacy spends no budget", expected="privacy=patient")
    budget = budget_of(config, patients=patients, limit=limit, table=read_table())
    console.print(draw(budget, read_table()))
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(budget), indent=2) + "\n", encoding="utf-8")
    return budget


def budget_of(config: Config, *, patients: int, limit: float, table: Measured) -> Budget:
    """The numbers, from a composed configuration."""
    sigmas = noise_multipliers(config)
    parts = phases(config)
    rates = tuple(float(p.get("sample_rate") or config["training"]["sample_rate"]) for p in parts)
    steps = tuple(p["rounds"] * int(p.get("steps_per_round") or config["training"]["steps_per_round"]) for p in parts)
    sizes = sizes_of(config, patients)
    account = Account()
    for sigma, rate, count in zip(sigmas, rates, steps, strict=True):
        account = account.add(noise_multiplier=sigma, sample_rate=rate, steps=count)
    delta = float(config["privacy"]["delta"])
    index = _index(sigmas, rates, steps, sizes)
    known = all(part["scope"] == MEASURED_SCOPE for part in parts)
    loss = table.loss(index) if known else None
    return Budget(
        patients=patients, sizes=sizes, rounds=int(config["rounds"]), sigmas=sigmas, rates=rates, steps=steps,
        batch=min(rates) * min(sizes), epsilon=account.epsilon(delta=delta), delta=delta,
        other_deltas={f"{d:g}": account.epsilon(delta=float(d)) for d in config["report_deltas"]},
        twice=account.merge(account).epsilon(delta=delta), index=index, loss=loss, limit=limit,
        needed=women_needed(index, patients, limit, table) if known else None,
        useful=loss is None or loss.mean < table.gain,
    )  # fmt: skip


def sizes_of(config: Config, patients: int) -> tuple[int, ...]:
    """Equal sites, rounded as their public sizes are."""
    each = patients / int(config["sites"])
    return (rounded(round(each), int(config["cohort"]["round_patients_to"])),) * int(config["sites"])


def women_needed(index: float, patients: int, limit: float, table: Measured) -> int | None:
    """Women at all sites together so that noise costs at most `limit`: the index falls as one over their number."""
    wanted = table.index_for(limit)
    if wanted is None:
        return None
    needed = math.ceil(patients * index / wanted / 10) * 10
    return needed if needed <= MOST_PATIENTS else None


def _index(
    sigmas: Sequence[float], rates: Sequence[float], steps: Sequence[int], sizes: Sequence[int]
) -> float:
    parts = zip(sigmas, rates, steps, strict=True)
    women = [float(size) for size in sizes]
    return math.sqrt(sum(index_of(sigma=s, sample_rate=q, steps=t, sizes=women) ** 2 for s, q, t in parts))


def sure(epsilon: float) -> float:
    """How often, at most, somebody can be right about whether a patient took part, who was at 50 % before; delta apart.
    By Bayes 1 / (1 + exp(-epsilon)).

    >>> round(sure(1.0), 3)
    0.731
    """
    return 1.0 / (1.0 + math.exp(-epsilon))


def draw(budget: Budget, table: Measured) -> RenderableType:
    """What a person reads: the noise, what it costs, and whether it is worth it."""
    rows = Table(title="What the budget buys", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    rows.add_column(no_wrap=True)
    rows.add_column()
    others = ", ".join(f"{epsilon:.2f} at delta {delta}" for delta, epsilon in budget.other_deltas.items())
    rows.add_row("Women", f"{budget.patients:,} train, at {len(budget.sizes)} sites of about {budget.sizes[0]:,}")
    rows.add_row("Privacy", f"epsilon {budget.epsilon:.2f} at delta {budget.delta:g} for each woman, over all "
                 f"{budget.rounds} rounds ({others})")  # fmt: skip
    rows.add_row("What that means", "somebody who knows all else, and tossed a coin about whether she took part, is "
                 f"right in at most {sure(budget.epsilon):.1%} of cases after seeing all that left")  # fmt: skip
    rows.add_row("A woman at two sites", f"epsilon {budget.twice:.2f}: what both tell of her adds up")  # fmt: skip
    for number, (sigma, rate, steps) in enumerate(zip(budget.sigmas, budget.rates, budget.steps, strict=True), 1):
        phase = f"Phase {number}: " if len(budget.sigmas) > 1 else ""
        rows.add_row("Noise", f"{phase}multiplier {sigma:.3f}, sampling rate {rate:g}, {steps} steps; a step expects "
                     f"{rate * min(budget.sizes):.0f} women at a site")  # fmt: skip
    if budget.loss is not None:
        rows.add_row("AUC lost to noise", budget.loss.words)
        rows.add_row("AUC lost to the recipe", RECIPE)
        rows.add_row(f"For at most {budget.limit:g}", _needed(budget))
    return Group(rows, verdict(budget, table), Text(source(table), style="dim"))


def _needed(budget: Budget) -> str:
    if budget.needed is None:
        return "no number of women up to a million; allow more epsilon"
    return f"{budget.needed:,} women at all sites together, the same otherwise"


def verdict(budget: Budget, table: Measured) -> Text:
    """In one sentence, whether to spend it."""
    if budget.loss is None:
        return Text(REHEARSE, style="yellow")
    if not budget.useful:
        return Text(f"No: noise would take {budget.loss.words}, and training adds {table.gain:.3f} over the public "
                    "weights without it. More women, more epsilon, or no study.", style="bold red")  # fmt: skip
    if budget.loss.mean > budget.limit:
        return Text(f"Doubtful: more is lost than {budget.limit:g}; of {table.gain:.3f} that training adds, "
                    f"{max(0.0, table.gain - budget.loss.mean):.3f} would be left.", style="bold yellow")  # fmt: skip
    return Text(f"Worth it: of {table.gain:.3f} that training adds over the public weights, "
                f"{table.gain - budget.loss.mean:.3f} would be left.", style="bold green")  # fmt: skip


def source(table: Measured) -> str:
    """Where the figures come from, and what they are not."""
    return (
        f"Noise and epsilon are exact. Losses were measured on synthetic women ({table.made}, {table.held_out:,} "
        f"held-out women, {sum(len(group.losses) for group in table.groups)} private trainings, `{table.command}`); "
        "nine of ten lie within the interval. They say how the software behaves, not how your patients will."
    )

