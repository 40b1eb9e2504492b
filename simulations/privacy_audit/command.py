"""`mammofed privacy audit`: composes the study as a run would, makes one hospital of it, runs every check, shows it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors.numpy import load_file

from client.trainer.config import SiteConfig
from shared_model.cohort import Cohort, split_indices
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, PromiseBrokenError
from shared_model.protocol import Protocol
from simulations.cohorts import cohort_folder, prepare_cohorts
from simulations.composition import compose_study
from simulations.hospitals import sources
from simulations.launch import check
from simulations.live import LiveView
from simulations.parties import HELD_OUT, split_of, write_small
from simulations.plan import Config, build_protocol, noise_multipliers, pipeline_of, write_initial_weights
from simulations.privacy_audit import accounting, canaries, leak, membership, noise, sampling, sensitivity
from simulations.privacy_audit.finding import Audit, Finding
from simulations.privacy_audit.show import draw, write
from simulations.privacy_audit.subject import Subject, account_of

MOST_WOMEN = 400  # of one hospital: attacks gain little from more, and each training costs with them
TRAIN_SHARE = 0.8

Tick = Callable[[], None]
Check = Callable[[Tick], list[Finding]]


def audit_study(
    overrides: Sequence[str], *, shadows: int, only: Sequence[str], output: Path | None, console: Console | None = None
) -> Audit:
    """Audit the study of these Hydra overrides and print what was found.

    Args:
        shadows: shadow models of the membership attack; 0: 16, or none where each takes as long as the study.
        only: names of checks; empty: all.
        output: folder for audit.json and audit.html.

    Raises:
        ConfigError: what a run would refuse, a study without privacy, or an unknown check.
        PromiseBrokenError: a check contradicts the promise; after everything was shown and written.
    """
    console = console or Console()
    config = compose_study(overrides)
    check(config)
    if config["privacy"]["mode"] == "none":
        raise ConfigError("privacy.mode=none promises no epsilon, so that there is nothing to audit",
                          expected="privacy=patient")  # fmt: skip
    if unknown := set(only) - set(CHECKS):
        raise ConfigError("--only: no such check", found=sorted(unknown), expected=sorted(CHECKS))
    began = time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mammofed-audit-") as folder:
        subject, site = make_subject(config, Path(folder))
        findings = run_checks(checks_of(subject, site, shadows=shadows), only=only, console=console)
        protocol = subject.protocol
        audit = Audit(study=protocol.study, protocol_sha256=protocol.sha256, release=version("mammofed"),
                      claims=claims(protocol), findings=findings, seconds=time.perf_counter() - began)  # fmt: skip
    console.print(draw(audit))
    if output is not None:
        for path in write(audit, output):
            console.print(f"Written  {path}", highlight=False)
    if audit.broken:
        raise PromiseBrokenError(audit.headline, remedy="train nothing with this release; tell the maintainers")
    return audit


CHECKS = ("noise", "sampling", "sensitivity", "accounting", "canaries", "leak", "membership")


def checks_of(subject: Subject, site: SiteConfig, *, shadows: int) -> dict[str, Check]:
    """Each check by its name, in the order in which they run: what is quick and strict first."""
    return {
        "noise": lambda tick: noise.check_noise(subject, tick=tick),
        "sampling": lambda tick: sampling.check_sampling(subject, tick=tick),
        "sensitivity": lambda tick: sensitivity.check_sensitivity(subject, tick=tick),
        "accounting": lambda tick: accounting.check_accounting(site, subject.protocol, subject.weights, tick=tick),
        "canaries": lambda tick: canaries.check_canaries(subject, tick=tick),
        "leak": lambda tick: leak.check_leak(subject, tick=tick),
        "membership": lambda tick: membership.check_membership(subject, shadows=shadows, tick=tick),
    }


def run_checks(checks: dict[str, Check], *, only: Sequence[str], console: Console) -> tuple[Finding, ...]:
    """Run them one after another under a progress bar."""
    chosen = [name for name in checks if not only or name in only]
    found: list[Finding] = []
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[ticks]}")
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("Audit", total=len(chosen), ticks="")
        for name in chosen:
            done = 0

            def tick() -> None:
                nonlocal done
                done += 1
                progress.update(task, ticks=f"{done} done")

            progress.update(task, description=f"Audit: {name}", ticks="")
            found += checks[name](tick)
            progress.advance(task)
    return tuple(found)


def make_subject(config: Config, folder: Path) -> tuple[Subject, SiteConfig]:
    """One hospital of the study with its women, and a trainer of it whose state is empty."""
    contract, pipeline = load_contract(), pipeline_of(config)
    small = {**config, "patients": min(int(config["patients"]), MOST_WOMEN * int(config["sites"])), "held_out": 100}
    cohort_path, name, shared = _prepare(small, folder)
    cohort = Cohort.open(cohort_path)
    fractions = {"train": TRAIN_SHARE, "test": 1 - TRAIN_SHARE}
    salt = str(split_of(small, name)["salt"])
    indices = split_indices(cohort, salt=salt, fractions=fractions)["train"][:MOST_WOMEN]
    initial = folder / "initial.safetensors"
    weights_terms = write_initial_weights(config, n_features=contract.n_features, destination=initial)
    sizes = {name: len(indices), **{other: len(indices) for other in shared if other != name}}
    protocol = build_protocol(
        config, patients=sizes, sigmas=noise_multipliers(config), initial_weights=weights_terms,
        contract={"version": contract.version, "sha256": contract.sha256, "n_features": contract.n_features},
        pipeline=pipeline.terms(),
    )  # fmt: skip
    subject = Subject(protocol=protocol, site=name, cohort=cohort, indices=np.asarray(indices, dtype=np.int64),
                      fields=tuple(contract.groups.values()), weights=load_file(initial))  # fmt: skip
    (folder / "protocols").mkdir()
    write_small(folder / "protocols" / "audited.json", protocol.to_json())
    return subject, SiteConfig(
        coordinator=None, private_only=True, site=name, role="site", cohort=cohort_path.resolve(),
        state=(folder / "state").resolve(), protocols=(folder / "protocols").resolve(), device="cpu", salt=salt,
        fractions=fractions,
    )  # fmt: skip


def _prepare(config: Config, folder: Path) -> tuple[Path, str, list[str]]:
    """Films and cohort of the first hospital, from the cache where they are; its name, and all hospitals' names."""
    contract, pipeline = load_contract(), pipeline_of(config)
    cache = Path(config["cache"] or Path.home() / ".cache" / "mammofed").expanduser()
    with LiveView(folder) as view:
        with view.stage("Make the audited hospital's films", None) as advance:
            found = sources(config, cache, pipeline=pipeline, workers=config["workers"] or 1, progress=advance)
        names = sorted(name for name in found if name != HELD_OUT)
        place = cohort_folder(cache, found[names[0]].parent.name, pipeline, contract) / names[0]
        prepare_cohorts(config, {names[0]: (found[names[0]], place)}, contract, pipeline, view)
    return place, names[0], names


def claims(protocol: Protocol) -> dict[str, float | int | str]:
    """What the study promises, in numbers."""
    account, rows = account_of(protocol, protocol.rounds), protocol.mechanisms(protocol.rounds)
    return {
        "epsilon": round(account.epsilon(delta=protocol.privacy.delta), 4), "delta": protocol.privacy.delta,
        "C": protocol.privacy.clip, "sigma": " ".join(f"{sigma:g}" for sigma, _, _ in rows),
        "q": " ".join(f"{rate:g}" for _, rate, _ in rows), "steps": account.steps,
    }  # fmt: skip
