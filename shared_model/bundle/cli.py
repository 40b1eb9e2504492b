"""`mammofed bundle OUT` and `mammofed bundle verify FOLDER`: thin, the work is in `make` and `contents`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from shared_model.bundle.contents import Role, Verified


class _MakeByDefault(click.Group):
    """`bundle OUT` is `bundle make OUT`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `make` before what names no command."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_MakeByDefault)
def bundle() -> None:
    """All that an installation without a network needs, in one folder, with hashes.

    Example:  mammofed bundle mammofed-site --role site
    """


@bundle.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--role", type=click.Choice(["site", "evaluator", "coordinator", "all"]), default="all",
              show_default=True, help="Whose papers and service files to add; the wheels are the same.")  # fmt: skip
@click.option("--source", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Checkout of the release (default: the one that this is installed from).")  # fmt: skip
@click.option("--find-links", multiple=True, help="Folder or page with wheels, for pip; may be given again.")
@click.option("--no-index", is_flag=True, help="Take wheels from --find-links alone.")
def make(out: Path, role: Role, source: Path | None, find_links: tuple[str, ...], no_index: bool) -> None:
    """Make a bundle in OUT, for this Python and this kind of machine.

    Example:  mammofed bundle mammofed-0.1.0
    """
    from shared_model.bundle.contents import INSTALLER
    from shared_model.bundle.make import checkout
    from shared_model.bundle.make import make as make_bundle

    options = [f"--find-links={place}" for place in find_links] + ["--no-index"] * no_index
    made = make_bundle(out, source=source or checkout(), role=role, pip_options=options)
    _show(made)
    click.echo(f"Next       carry {out} there, then  sh {out.name}/{INSTALLER} TARGET  (it checks every hash first)")


@bundle.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def verify(folder: Path) -> None:
    """Check that FOLDER is a bundle as it was made; the exit code is 81 when it is not.

    Example:  mammofed bundle verify /media/usb/mammofed-0.1.0
    """
    from shared_model.bundle.contents import verify as check

    _show(check(folder))


def _show(found: Verified) -> None:
    manifest = found.manifest
    python = f"Python {manifest.python}, {manifest.machine}"
    click.echo(f"Bundle     MammoFed {manifest.release} ({manifest.role}), {python}")
    click.echo(f"Whole      {found.files} files, {found.wheels} wheels, {found.bytes / 1e6:,.0f} MB")
    click.echo(f"Six words  {found.words}  (the same at both ends, compared over the phone)")
