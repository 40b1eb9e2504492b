"""The `mammofed` command: mounts the commands of each package lazily, so that `mammofed --help` imports no torch."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click
import typer

# name -> (module, attribute, one line of help); the module is imported only when the command is called
COMMANDS: dict[str, tuple[str, str, str]] = {
    "simulate": ("simulations.cli", "simulate", "Launch a multi-site study on this machine (also: resume, bench)."),
    "site": ("client.cli", "site", "What a hospital runs: import, data, predict, explain, serve, ..."),
    "pretrain": ("simulations.pretrain", "app", "Pre-train the image branch on public procedural films."),
    "server": ("server.cli", "server", "What a coordinator runs: init, invite, enrol, propose, start, status, ..."),
    "privacy": ("simulations.privacy_cli", "privacy", "Audit the privacy promise; plan what it costs."),
    "audit": ("shared_model.audit.cli", "audit", "Check an audit log offline."),
    "bundle": ("shared_model.bundle.cli", "bundle", "Everything for an installation without a network."),
    "monitor": ("server.monitor.cli", "monitor", "Watch federated rounds, live: a page, a terminal, metrics."),
    "status": ("server.monitor.status_cli", "status", "How a study stands; the exit code says it, for scripts."),
    "passport": ("shared_model.passport.cli", "passport", "Show or check the passport of a model, offline."),
    "export": ("shared_model.export.cli", "export", "Write a released model as ONNX, checked on real cases."),
    "report": ("server.cli", "report", "Write the report of a finished run again."),
}


class LazyGroup(click.Group):
    """A click group whose commands live in other packages and are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        return typer.main.get_command(command) if isinstance(command, typer.Typer) else command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands with their one line, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mammofed")
def cli() -> None:
    """MammoFed: hospitals train one mammogram-plus-clinical model; no patient's data leaves the building.

    Start with:  mammofed simulate
    """


def main() -> Any:
    """Entry point: run the command; an expected failure becomes one clear message and its exit code."""
    from shared_model.errors import MammoFedError

    try:
        return cli.main(prog_name="mammofed", standalone_mode=True)
    except MammoFedError as error:
        click.secho(f"mammofed: {error}", fg="red", err=True)
        click.echo(f"(exit code {error.exit_code}: {type(error).__name__})", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
