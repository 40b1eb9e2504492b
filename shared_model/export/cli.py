"""`mammofed export`: a released model for other software; thin, the work is in `export`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export")
@click.argument("place", metavar="RUN_DIR", type=click.Path(exists=True, path_type=Path))
@click.option("--onnx", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--cohort", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Prepared cohort to check the export on (default: that of the run's evaluator).")  # fmt: skip
@click.option("--women", type=click.IntRange(1, 100_000), default=48, show_default=True, help="How many of them.")
@click.option("--key", "key_hex", metavar="HEX", help="The public key of the passport's signer, as you know it.")
def export(place: Path, path: Path, cohort: Path | None, women: int, key_hex: str | None) -> None:
    """Write the model of RUN_DIR as ONNX, after its passport was verified and its outputs compared on real cases.

    Example:  mammofed export runs/quick-20261122-120000 --onnx quick.onnx
    """
    from shared_model.export.export import export_onnx
    from shared_model.export.graph import OPSET
    from shared_model.export.parity import TOLERANCE
    from shared_model.signing import VerifyKey

    done = export_onnx(place, path, cohort=cohort, women=women,
                       key=None if key_hex is None else VerifyKey.from_hex(key_hex))  # fmt: skip
    gaps = ", ".join(f"{name} {gap:.1e}" for name, gap in done.parity.greatest.items())
    click.echo(f"Parity     {done.parity.women} women, {done.parity.answers} answers (parts left out, too); greatest "
               f"difference {done.parity.worst:.1e}, allowed {TOLERANCE:g}")  # fmt: skip
    click.echo(f"           {gaps}")
    click.echo(f"Written    {done.path}, {done.bytes:,} bytes, opset {OPSET}, any number of patients")
    click.echo(f"SHA-256    {done.sha256}")
    click.echo(f"Passport   {done.passport.sha256}, in its metadata (mammofed.passport_sha256)")
