"""`mammofed server explore make | show`: counts over all sites before a study; thin, the work is in `explore`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def explore() -> None:
    """What the sites have, before a study: counts, histograms, missing values, of all together and of none alone.

    Start with:  mammofed server explore make study/protocol.yaml --to explore.yaml
    """


@explore.command()
@click.argument("protocol", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--to", "target", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="The exploration's own protocol, to be proposed like a study's.")  # fmt: skip
@click.option("--field", "fields", multiple=True, help="Of the data contract; may be given again (default: all).")
@click.option("--bins", type=click.IntRange(2, 64), default=10, show_default=True, help="Of a number.")
@click.option("--noise", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="Of each site's counts / their sensitivity; 0: exact (`private_only` refuses).")  # fmt: skip
@click.option("--suppress-below", type=click.IntRange(0, 1000), default=5, show_default=True,
              help="Exact counts below this are not shown.")  # fmt: skip
@click.option("--name", help="Of the exploration (default: STUDY-explore).")
def make(
    protocol: Path, target: Path, fields: tuple[str, ...], bins: int, noise: float, suppress_below: int,
    name: str | None,
) -> None:  # fmt: skip
    """Write the protocol of an exploration among the sites of PROTOCOL. It is proposed, reviewed, approved and started
    as a study is.

    Example:  mammofed server explore make study/protocol.yaml --to explore.yaml --field age --noise 4
    """
    from server.deploy.explore import exploration_of
    from shared_model.errors import ConfigError
    from shared_model.proposal import protocol_yaml, read_protocol

    if target.exists():
        raise ConfigError(f"{target} is there already", expected="a new file")
    found = exploration_of(read_protocol(protocol), fields=fields, bins=bins, noise=noise,
                           suppress_below=suppress_below, name=name)  # fmt: skip
    target.write_text(protocol_yaml(found), encoding="utf-8")
    click.echo(f"Exploration  {found.study}: {len(found.federation.sites)} sites, "
               + (f"noise {noise:g} at each" if noise else "exact in the sum, no differential privacy"))  # fmt: skip
    weights = protocol.with_name("initial.safetensors")
    click.echo(f"Next         `mammofed server propose HOME {target} --weights {weights}`, then `start`, then "
               f"`mammofed server explore show HOME/studies/{found.study}`")  # fmt: skip


@explore.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
def show(run_dir: Path) -> None:
    """The counts of an exploration that has come to its end.

    Example:  mammofed server explore show coordinator/studies/density-2027-explore
    """
    from rich.console import Console
    from rich.table import Table

    from server.rounds.explore import read_exploration

    found = read_exploration(run_dir)
    table = Table(title=f"{found['study']}: {len(found['sites'])} sites together", title_justify="left")
    for title in ("what", "value", "women"):
        table.add_column(title, justify="right" if title == "women" else "left")
    for histogram in found["histograms"]:
        for index, (cell, count) in enumerate(zip(histogram["cells"], histogram["counts"], strict=True)):
            unit = f" ({histogram['unit']})" if histogram["unit"] else ""
            shown = f"< {found['suppress_below']}" if count is None else f"{count:,.0f}"
            table.add_row("" if index else histogram["name"] + unit, cell, shown)
    Console().print(table)
    if found["exact"]:
        click.echo("Exact in the secure sum: no site's own counts were seen, and no epsilon covers the sum.")
    else:
        click.echo(f"Each count has noise of std {found['noise_std']:.3g}; its epsilon is in every site's ledger.")
    for site, why in found["lost"].items():
        click.echo(f"Not in it    {site}: {why}")
