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
