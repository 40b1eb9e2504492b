"""`mammofed passport`: read and check the passport of a model, offline; thin, the work is in `verify` and `show`."""

from __future__ import annotations

from pathlib import Path

import click

_PLACE = click.Path(exists=True, path_type=Path)
_KEY = click.option("--key", "key_hex", metavar="HEX",
                    help="The signer's public key, as you know it (default: the passport's own word).")  # fmt: skip


@click.group()
def passport() -> None:
    """What a model is, who trained it, at which price in privacy, and whether anything was changed since."""


@passport.command()
@click.argument("place", type=_PLACE)
@_KEY
@click.option("--json", "as_json", is_flag=True, help="The passport's content for machines.")
def show(place: Path, key_hex: str | None, as_json: bool) -> None:
    """Show the passport of PLACE, a file or a folder; its signature is checked, the files beside it are not.

    Example:  mammofed passport show runs/quick-20261122-120000
    """
    import json

    from shared_model.passport.show import print_passport
    from shared_model.passport.signed import SignedPassport
    from shared_model.passport.verify import find_passport
    from shared_model.signing import VerifyKey

    key = None if key_hex is None else VerifyKey.from_hex(key_hex)
    signed = SignedPassport.read(find_passport(place), key=key)
    if as_json:
        click.echo(json.dumps(signed.passport.plain(), indent=2))
    else:
        print_passport(signed, key_given=key is not None)


@passport.command()
@click.argument("place", type=_PLACE)
@_KEY
def verify(place: Path, key_hex: str | None) -> None:
    """Check signature and every file that lies beside the passport; exit code 33: the signature, 82: a file.

    Example:  mammofed passport verify density-2027-model --key 3f9a...
    """
    from shared_model.passport.show import signer_words
    from shared_model.passport.verify import verify as check
    from shared_model.signing import VerifyKey

    key = None if key_hex is None else VerifyKey.from_hex(key_hex)
    found = check(place, key=key)
    said = found.signed.passport
    click.echo(f"Passport   {found.signed.sha256[:16]} of {said.study}, {said.status}, made {said.made}")
    click.echo(f"Signature  {signer_words(found.signed, key_given=key is not None)}")
    click.echo(f"Files      {len(found.checked)} are those that it names: {', '.join(found.checked)}")
    if found.absent:
        click.echo(f"Not here   {', '.join(found.absent)} (named, not needed)")
    if found.unsigned:
        click.echo(f"Unsigned   {', '.join(found.unsigned)} (here, not named: written after the passport was signed)")
    click.echo(f"Weights    {said.model.sha256}")
    head = said.record.head
    if head is not None:
        click.echo(f"Audit log  {head.head.owner}, entry {head.head.sequence}, {head.head.sha256[:16]}: compare with "
                   "what sites recorded, `mammofed audit verify`")  # fmt: skip
