"""`mammofed privacy`: audits a promise, and plans a study's budget before it is spent."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def privacy() -> None:
    """Try to break the privacy promise, and plan what it will cost."""


@privacy.command(context_settings={"ignore_unknown_options": True})
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--only", multiple=True, help="Checks to run (default: all): noise, sampling, sensitivity, accounting, "
              "canaries, leak, membership.")  # fmt: skip
@click.option("--shadows", type=click.IntRange(0, 256), default=0, show_default="16, or none where it would take hours",
              help="Shadow models of the membership attack.")  # fmt: skip
@click.option("--output", type=click.Path(file_okay=False, path_type=Path),
              help="Folder for audit.json and audit.html.")  # fmt: skip
def audit(overrides: tuple[str, ...], only: tuple[str, ...], shadows: int, output: Path | None) -> None:
    """Try to break the privacy of a study, with the code that hospitals run.

    Takes the overrides that the study itself would take. Needs a CPU and some minutes, and no network; ends with exit
    code 45 when something contradicts the promise.

    Example:  mammofed privacy audit study=quick privacy.epsilon=3 --output audit
    """
    from simulations.privacy_audit.command import audit_study

    audit_study(overrides, shadows=shadows, only=only, output=output)


@privacy.command(context_settings={"ignore_unknown_options": True})
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--patients", type=click.IntRange(1), required=True, help="Training women at all sites together.")
@click.option("--sites", type=click.IntRange(1, 1000), default=4, show_default=True, help="Hospitals, of equal size.")
@click.option("--rounds", type=click.IntRange(1, 10_000), help="Rounds of the study.")
@click.option("--epsilon", type=click.FloatRange(0, min_open=True), help="For each patient, over the whole study.")
@click.option("--delta", type=click.FloatRange(0, 1, min_open=True, max_open=True))
@click.option("--loss", type=click.FloatRange(0, 0.5, min_open=True), default=0.02, show_default=True,
              help="AUC that may be lost to noise.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write it here.")
def plan(
    overrides: tuple[str, ...], patients: int, sites: int, rounds: int | None, epsilon: float | None,
    delta: float | None, loss: float, json_path: Path | None,
) -> None:  # fmt: skip
    """What a privacy budget buys: noise, what it costs in AUC, how many women would do.

    Noise and epsilon are exact; the loss of AUC comes from a table that was measured on synthetic women, and its
    interval with it. Takes further overrides of the study, as `mammofed simulate` does.

    Example:  mammofed privacy plan --patients 1800 --rounds 20 --epsilon 3
    """
    from simulations.privacy_plan.command import plan_budget

    named = (("rounds", rounds), ("privacy.epsilon", epsilon), ("privacy.delta", delta))
    given = [f"{key}={value}" for key, value in named if value is not None]
    plan_budget(patients=patients, sites=sites, overrides=[*overrides, *given], limit=loss, json_path=json_path)
