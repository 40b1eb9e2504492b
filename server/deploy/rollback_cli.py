"""`mammofed server rollback` and `influence`: thin, the work is in `rollback` and `server.rounds.influence`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("home", type=click.Path(file_okay=False, path_type=Path))
@click.argument("study")
@click.option("--without", required=True, metavar="SITE", help="Whose contribution must not be in the model.")
@click.option("--to", "folder", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="New folder for the proposal: protocol.yaml and initial.safetensors.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=1), help="Of the new study (default: what was left of the old one).")
@click.option("--name", help="Of the new study (default: STUDY-without-SITE).")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback(
    home: Path, study: str, without: str, folder: Path, rounds: int | None, name: str | None, yes: bool
) -> None:
    """Go on with STUDY from the last round that SITE had no part in. The old study ends.

    The rounds since are thrown away; the new study is proposed, reviewed and approved like any other.

    Example:  mammofed server rollback coordinator density-2027 --without north --to again
    """
    from server.deploy.home import CoordinatorHome
    from server.deploy.rollback import plan_rollback, roll_back
    from server.deploy.studies import find_study

    there = CoordinatorHome.open(home.resolve())
    plan = plan_rollback(find_study(there, study).path, without=without, name=name, rounds=rounds)
    click.echo(f"Kept         round {plan.kept} of {study}, the last without {without}"
               + ("" if plan.kept else " (the initial weights)"))  # fmt: skip
    click.echo(f"Thrown away  {plan.lost} closed rounds, which the other sites have paid for in epsilon")
    click.echo(f"Goes on      as {plan.protocol.study}: {plan.protocol.rounds} rounds, "
               f"{len(plan.protocol.federation.sites)} sites")  # fmt: skip
    if not yes:
        click.confirm(f"End {study}?", abort=True)
    roll_back(there, study, plan, folder, without=without)
    click.echo(f"Next         read {folder / 'protocol.yaml'}, then `mammofed server propose {home} "
               f"{folder / 'protocol.yaml'} --weights {folder / 'initial.safetensors'}`")  # fmt: skip


@click.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
def influence(run_dir: Path) -> None:
    """How much each site moved the model of RUN_DIR, as far as the coordinator saw its updates.

    Example:  mammofed server influence runs/quick-20261122-120000
    """
    from rich.console import Console
    from rich.table import Table

    from server.rounds.influence import influence_of

    table = Table(title="Influence of each site (medians over its rounds)", title_justify="left")
    table.add_column("site")
    for title in ("rounds", "length of its step", "cosine with the others", "mean without it lies elsewhere by"):
        table.add_column(title, justify="right")
    for row in influence_of(run_dir):
        table.add_row(row.site, str(row.rounds), f"{row.norm:.3g}",
                      "" if row.cosine is None else f"{row.cosine:+.2f}",
                      "" if row.shift is None else f"{100 * row.shift:.0f} %")  # fmt: skip
    Console().print(table)
    click.echo("Of the weighted mean (FedAvg's), whatever the strategy. With privacy most of a step is noise. A site "
               "that lies apart may simply have other women.")  # fmt: skip
