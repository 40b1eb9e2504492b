"""`mammofed site gain`: thin; the work is in `study` and `show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.status import Status

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("place", metavar="HOME|RUN_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--site", help="Only this hospital of a run directory.")
@click.option("--model", type=click.Path(exists=True, path_type=Path),
              help="The released folder (default: the one in HOME/models; a run directory has its own).")  # fmt: skip
@click.option("--initial", type=FILE, help="The study's initial weights, for public weights and the own model.")
@click.option("--summary", type=FILE, help="The coordinator's summary.json, for its threshold.")
@click.option("--local/--no-local", default=True, show_default=True, help="Train the hospital's own model for it.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here as JSON.")
def gain(
    place: Path, site: str | None, model: Path | None, initial: Path | None, summary: Path | None, local: bool,
    output: Path | None,
) -> None:  # fmt: skip
    """What a hospital gained: shared, own and public model on its own test women. Nothing is sent anywhere.

    \b
    Example:  mammofed site gain north --model density-2027-model
              mammofed site gain runs/quick-20261126-120000 --site site_01
    """
    from rich.console import Console

    from client.gain.show import show, sites_of_evidence

    console = Console()
    if (place / "evidence.json").exists():
        rows = sites_of_evidence(place / "evidence.json", site=site)
    else:
        from client.gain.study import studies_of_run, work_out

        if (place / "protocol.json").exists():
            found = studies_of_run(place, site=site, model=model, initial=initial, summary=summary)
        else:
            from client.gain.at_home import study_at_home

            found = [study_at_home(place, model=model, initial=initial, summary=summary)]
        vouched = found[0].vouched
        console.print(f"{'Passport  ' if vouched.signed else '! '}{vouched.words}", markup=False, highlight=False,
                      soft_wrap=True)  # fmt: skip
        rows = []
        for study in found:
            name = study.config.site
            with console.status(f"{name}: scoring its test women, training its own model") as status:
                def tell(done: int, of: int, name: str = name, status: Status = status) -> None:
                    status.update(f"{name}: own model, round {done} of {of}")

                rows.append(work_out(study, local=local, tell=tell))
    for row in rows:
        show(console, row)
    if output is not None:
        output.write_text(json.dumps(rows if len(rows) > 1 else rows[0], indent=2, allow_nan=False) + "\n")
        console.print(f"Figures  {output}", markup=False)
