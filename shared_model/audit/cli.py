"""`mammofed audit`: check an audit log offline; thin, the work is in `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from shared_model.audit import Verified

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def audit() -> None:
    """Check audit logs, offline and without any key of your own."""


@audit.command()
@click.argument("file", type=_FILE)
@click.option("--head", "heads", type=_FILE, multiple=True, help="A signed head of this log that somebody kept.")
@click.option("--witness", "witnesses", type=_FILE, multiple=True,
              help="Another party's audit log: the heads that it recorded of this one must fit.")  # fmt: skip
@click.option("--key", "key_hex", help="The owner's public key in hex, as you know it (default: the log's own word).")
def verify(file: Path, heads: tuple[Path, ...], witnesses: tuple[Path, ...], key_hex: str | None) -> None:
    """Check FILE line by line; the first bad line is named and the exit code is 71 (33 for a bad signature).

    Example:  mammofed audit verify north/audit.jsonl --witness coordinator/audit.jsonl
    """
    from shared_model.audit.heads import SignedHead
    from shared_model.audit.verify import verify as check
    from shared_model.signing import VerifyKey

    key = VerifyKey.from_hex(key_hex) if key_hex is not None else None
    found = check(file, key=key, heads=[SignedHead.read(path) for path in heads], witnesses=witnesses)
    for line in _words(found, key_given=key is not None):
        click.echo(line)


def _words(found: Verified, *, key_given: bool) -> list[str]:
    lines = [
        f"Log         {found.log} of {found.owner}: {found.entries} entries, whole and in order",
        f"Time        {found.first} to {found.last}",
        f"Last hash   {found.sha256}",
    ]
    if found.heads:
        lines.append(f"Heads       {found.heads} of others fit; nothing up to line {found.covered} was rewritten")
    else:
        lines.append("Heads       none was given: a log that its owner wrote anew looks the same (--witness, --head)")
    if 0 < found.covered < found.entries:
        lines.append(f"Uncovered   lines {found.covered + 1} to {found.entries} are younger than any head given")
    words = "as given" if key_given else f"by the log's own word; compare: {found.key.fingerprint}"
    lines.append(f"Key         {found.key.hex[:16]}... {words}")
    if found.repairs:
        lines.append(f"Crashes     {found.repairs} unfinished lines were removed, each with an entry that says so")
    if found.refusals:
        lines.append(f"Refusals    {found.refusals} rewritten logs of others were refused: see entries head_refused")
    return lines
