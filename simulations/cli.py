"""`mammofed simulate`: hands every argument to Hydra untouched, except to the named commands below."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from shared_model.errors import MammoFedError


class _HydraByDefault(click.Group):
    """A group whose own arguments are Hydra's; only its named sub-commands are click's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Route the named sub-commands; everything else (also --help, --multirun, --cfg) belongs to Hydra."""
        if args and args[0] in self.commands:
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, ["run", *args])


@click.group(cls=_HydraByDefault, add_help_option=False)
def simulate() -> None:
    """Launch a multi-site study on this machine."""


@simulate.command(
    "run", hidden=True, add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.pass_context
def run(ctx: click.Context) -> None:
    """Compose the configuration with Hydra and launch the study."""
    import hydra
    from omegaconf import DictConfig

    def task(config: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        from simulations.launch import EXIT_STOPPED, launch

        hydra_config = HydraConfig.get()
        code, words = 1, "an unexpected error, see above"
        try:
            output = Path(hydra_config.runtime.output_dir)
            code, words = launch(config, output, overrides=hydra_config.overrides.task), ""
        except MammoFedError as error:
            click.secho(f"mammofed: {error}", fg="red", err=True)
            code, words = error.exit_code, str(error)
        finally:
            if hydra_config.mode.name == "MULTIRUN":
                sweep.add(hydra_config, code, words)
        if code and (hydra_config.mode.name == "RUN" or code == EXIT_STOPPED):
            sys.exit(code)  # in a multirun the other jobs go on, unless a person asked to stop

    from simulations.comparison.sweep import Sweep

    sweep = Sweep()
    sys.argv = ["mammofed simulate", *ctx.args]
    try:
        hydra.main(version_base="1.3", config_path="pkg://configs", config_name="config")(task)()
    finally:  # also when a job broke: the others' results are worth their table
        failed = sweep.finish()
    if failed:
        sys.exit(failed)


@simulate.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
def resume(run_dir: Path) -> None:
    """Go on with a stopped study from its last closed round.

    Example:  mammofed simulate resume runs/quick-20261122-120000
    """
    from simulations.launch import resume as resume_run

    sys.exit(resume_run(run_dir.resolve()))  # trainers work in a folder of their own


@simulate.command(context_settings={"ignore_unknown_options": True})
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write it here.")
def plan(overrides: tuple[str, ...], json_path: Path | None) -> None:
    """What a study will take in minutes, memory, bytes and epsilon, before it starts.

    Takes the overrides that the study itself would take, and some twenty seconds to measure this machine.

    Example:  mammofed simulate plan study=quick sites=8 rounds=30 --json plan.json
    """
    from simulations.forecast.command import plan as plan_study

    plan_study(overrides, json_path=json_path)


@simulate.command(context_settings={"ignore_unknown_options": True})
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--site", "sites", multiple=True, metavar="NAME=PATIENTS",
              help="A hospital and its number of training patients; repeated for each.")  # fmt: skip
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Folder for protocol.yaml and initial.safetensors.")  # fmt: skip
def protocol(overrides: tuple[str, ...], sites: tuple[str, ...], output: Path) -> None:
    """Write the protocol of a real study: noise calibrated to its epsilon, initial weights made.

    Takes Hydra's overrides as the simulation does. `mammofed server propose` signs what it writes.

    Example:  mammofed simulate protocol --site north=420 --site south=300 --output pilot name=pilot rounds=20
    """
    from simulations.proposal import draft, read_sites

    proposal = draft(read_sites(sites), output, overrides)
    for line in proposal.words():
        click.echo(line)
    click.echo(f"Written        {proposal.protocol_file}, {proposal.weights_file}")


@simulate.command(context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--site", "sites", multiple=True, metavar="NAME", help="A hospital's name; repeated for each.")
def cohorts(folder: Path, overrides: tuple[str, ...], sites: tuple[str, ...]) -> None:
    """Make synthetic cohorts in FOLDER, one for each site and one for the evaluator: to rehearse a deployment.

    Takes Hydra's overrides as the simulation does; small ones (`study=smoke`) unless they say otherwise.

    Example:  mammofed simulate cohorts practice --site north --site south --site east
    """
    from simulations.practice import make_cohorts

    for name, women in make_cohorts(folder, sites, overrides).items():
        click.echo(f"{name:12} {women:5} women   {folder / name}")
    click.echo("Of each site's women a fifth is for testing, as its policy has it; the rest is what it trains on.")


@simulate.command()
@click.argument("run_dirs", metavar="RUN_DIR...", nargs=-1, required=True,
                type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@click.option("--output", type=click.Path(file_okay=False, path_type=Path),
              help="Also write comparison.json and comparison.html into this folder.")  # fmt: skip
def compare(run_dirs: tuple[Path, ...], output: Path | None) -> None:
    """Set runs side by side, each against the first; a sweep's folder stands for all its jobs.

    Example:  mammofed simulate compare runs/quick-20261122-120000 runs/quick-20261122-130000
    """
    from simulations.comparison import find_runs
    from simulations.comparison.sweep import show

    sys.exit(show(find_runs(run_dirs), output))


@simulate.command(context_settings={"ignore_unknown_options": True})
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="New folder for model, hospital, results and pages; they carry identities.")  # fmt: skip
def chain(run_dir: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Take a finished study through all that follows: report, passport, export, release, scores, explanations, gain.

    Scored are the study's held-out women, or those of a collection that is named as for a study, however few
    (`cohort=cbis_ddsm cohort.source=DIR`). How real films are tried: simulations/hospitals/README.md.

    Example:  mammofed simulate chain runs/quick-20261126-120000 --out results
    """
    from simulations.chain import run_chain

    def tell(words: str) -> None:
        click.secho(f"\n$ {words}", bold=True)

    run_chain(run_dir, out, overrides=overrides, tell=tell)


@simulate.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("source", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--women", default=150, show_default=True, type=click.IntRange(min=2), help="With a cancer, at most.")
@click.option("--method", "methods", multiple=True, default=("hirescam", "gradcam", "integrated_gradients"),
              show_default=True, help="Also: occlusion (four seconds a woman).")  # fmt: skip
def localise(model: Path, source: Path | None, women: int, methods: tuple[str, ...]) -> None:
    """Do the heat maps of a model point to lesions? Measured on synthetic women that it never saw.

    MODEL is a finished run, whose own held-out women of the split `test` are taken, or a released model; then SOURCE is
    a folder of the generator with truth.csv (~/.cache/mammofed/populations/.../held_out). Writes localisation.json into
    MODEL: its figure stands in the report and beside each map at the sites. Maps of the same model with a random view
    encoder, and of the weights that training began with, are measured beside it. A run's passport is signed again over
    the figures and the former one kept; a passport that cannot be signed here keeps the figures that it names.

    Example:  mammofed simulate localise runs/quick-20261126-120000
    """
    from simulations.localise_cli import localise_model

    localise_model(model, source, women=women, methods=methods)


@simulate.command()
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the rows here.")
@click.option("--only", multiple=True, help="Sections to run (default: all but `peers`).")
@click.option("--peers-folder", type=click.Path(file_okay=False, path_type=Path),
              help="Where `--only peers` installs and caches (default: ~/.cache/mammofed/peers).")  # fmt: skip
def bench(json_path: Path | None, only: tuple[str, ...], peers_folder: Path | None) -> None:
    """Measure speed, memory and bytes, each as a ratio against a baseline in the same run.

    `--only peers` compares with Flower on Ray and NVIDIA FLARE. It takes some ten minutes and installs FLARE (1.3 GB)
    into an environment of its own, so it runs only when it is named.

    Example:  mammofed simulate bench --json bench.json
    """
    from simulations.benchmarks.bench import run_bench

    run_bench(json_path=json_path, only=only, peers_folder=peers_folder)


@simulate.command()
@click.option("--only", multiple=True, help="Cases by pattern or first words: `kill`, `*/site-001/*` (default: all).")
@click.option("--suite", is_flag=True, help="The few that the test suite plays.")
@click.option("--list", "listing", is_flag=True, help="Name the cases and play none.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path),
              help="Also write the results here.")  # fmt: skip
@click.option("--keep", type=click.Path(file_okay=False, exists=True, path_type=Path),
              help="Leave what failed in this folder, logs among it.")  # fmt: skip
def faults(only: tuple[str, ...], suite: bool, listing: bool, json_path: Path | None, keep: Path | None) -> None:
    """Disturb a small study on purpose, and see that it comes to the same end.

    Every party is killed at every state; disks are full, files damaged, connections cut, and one site lies. The end
    state is compared with that of an undisturbed study. All cases take some minutes, and none needs a network.

    Example:  mammofed simulate faults --only kill/server
    """
    from simulations.faults.command import run_faults

    run_faults(only=only, suite=suite, listing=listing, json_path=json_path, keep=keep)


@simulate.command()
@click.option("--sites", type=click.IntRange(2, 64), default=24, show_default=True,
              help="Hospitals; an evaluator comes with them.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=15.0, show_default=True,
              help="How long the study works, from its first round on.")  # fmt: skip
@click.option("--trainers", type=click.IntRange(1, 64),
              help="Processes that the sites share (default: one for twelve sites).")  # fmt: skip
@click.option("--idle", "idle_s", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="Seconds before that in which nothing happens.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path),
              help="Also write every sample here.")  # fmt: skip
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path),
              help="Leave homes, logs and the study in this folder.")  # fmt: skip
def fleet(
    sites: int, minutes: float, trainers: int | None, idle_s: float, json_path: Path | None, keep: Path | None
) -> None:
    """Deploy many sites on this machine, and see whether the coordinator grows.

    Everything is real but the films and the number of trainers, which sites share: SuperLink, daemon, tunnels,
    SuperNodes, presence. A site takes 0.3 GB of memory and some five CPU-seconds to start.

    Example:  mammofed simulate fleet --sites 4 --minutes 3
    """
    from simulations.fleet.command import run_fleet

    run_fleet(sites=sites, minutes=minutes, trainers=trainers, idle_s=idle_s, json_path=json_path, keep=keep)
