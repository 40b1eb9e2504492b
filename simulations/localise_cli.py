"""What a person sees of `mammofed simulate localise`, and of the same at the end of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from shared_model.errors import ConfigError, MammoFedError
from shared_model.map_figures import LOCALISATION, MapFigures, ShareFigure
from shared_model.passport import PASSPORT, SignedPassport, Verified, former_name, verify
from shared_model.private_files import write_private
from shared_model.released import ReleasedModel
from simulations.localisation import default_pipeline
from simulations.localise import (
    Run,
    check_source,
    checked_methods,
    is_run,
    localise_run,
    read_run,
    settings_of,
)
from simulations.vouching import APART, can_sign, sign_measured


def localise_model(folder: Path, source: Path | None, *, women: int, methods: Sequence[str]) -> None:
    """The command: measure a model, print a table, write `localisation.json` into its folder, under its passport where
    this machine can sign that; a passport that cannot be signed here keeps the figures that it names.

    Raises:
        ConfigError: an unknown method, no source, or too few women with lesions that films show.
        PassportError, SignatureError: the folder is not what its passport says.
    """
    chosen = checked_methods(methods)
    if source is None and not is_run(folder):
        raise ConfigError(f"{folder} has no women of its own", expected="the run directory of a simulated study",
                          remedy="name SOURCE, as ~/.cache/mammofed/populations/.../held_out")  # fmt: skip
    if is_run(folder):
        run = read_run(folder, settings_of(folder))
        place = own_women(folder) if source is None else source
        if source is not None:
            run = replace(run, wanted=_everybody)
    else:
        assert source is not None
        run, place = _released(folder), source
    check_source(run, place)
    before = verify(folder) if (folder / PASSPORT).exists() else None
    apart = before is not None and LOCALISATION in (*before.checked, *before.absent) and not can_sign(before)
    name = APART if apart else LOCALISATION
    former = (folder / LOCALISATION).read_bytes() if before is not None and LOCALISATION in before.checked else None
    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task("Explain", total=None)
        found = localise_run(folder, run, place, women=women, methods=chosen, name=name,
                             progress=lambda done, total: bar.update(task, completed=done, total=total))  # fmt: skip
    if found.reason and former is not None:
        write_private(folder / LOCALISATION, former)  # no figures do not take the place of those that are signed
    signed = None if before is None else _signed(before, former)
    if found.reason:
        raise ConfigError(f"{place} has too few women with a lesion", found=found.reason, expected="at least 2")
    show(found)
    for line in _written(folder, name, before, signed):
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


def _signed(before: Verified, former: bytes | None) -> SignedPassport | None:
    """Sign over new figures; where that fails, those that the passport names come back, and the new ones lie apart.
    former: the file that it names, None where it names none."""
    try:
        return sign_measured(before)
    except MammoFedError:
        if former is not None and can_sign(before):
            (before.folder / LOCALISATION).replace(before.folder / APART)
            write_private(before.folder / LOCALISATION, former)
        raise


def _written(
    folder: Path, name: str, before: Verified | None, signed: SignedPassport | None
) -> Iterator[str]:  # fmt: skip
    """Where the figures are, and who vouches for them."""
    yield f"Written     {folder / name}"
    if signed is not None:
        former = former_name(signed.passport.replaces[0])
        yield f"Passport    signed again over it: {signed.sha256[:16]}; the former one is kept as {former}"
        yield f"Next        `mammofed report {folder}` brings it into the report"
    elif before is not None and name == APART:
        yield (f"! The passport vouches for the {LOCALISATION} that was measured before, which stays; nobody signs "
               "these figures, and no site shows them")  # fmt: skip
    elif before is not None:
        yield ("! The passport does not name it: sites show the figures as unsigned. Whose passport it is signs "
               f"again: `mammofed server passport HOME {before.signed.passport.study}`")  # fmt: skip


def own_women(run_dir: Path) -> Path:
    """The folder of a study's held-out women in the cache, made again where it is gone.

    Raises:
        ConfigError: the study's women are not synthetic: nobody knows their lesions to the pixel.
    """
    import tempfile

    from simulations.cohorts import hospitals
    from simulations.live import LiveView
    from simulations.parties import HELD_OUT
    from simulations.plan import pipeline_of

    settings = settings_of(run_dir)
    if settings["cohort"]["kind"] != "synthetic":
        raise ConfigError(f"{run_dir}: lesions of its women are not known to the pixel",
                          found=f"cohort={settings['cohort']['kind']}", expected="cohort=synthetic",
                          remedy="name SOURCE, a folder of synthetic women")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, LiveView(Path(scratch)) as view:
        _, folders = hospitals(settings, pipeline_of(settings), view)
    return folders[HELD_OUT]


def show(found: MapFigures) -> None:
    """A table on the terminal."""
    table = Table(title=_title(found), title_justify="left")
    first = next(iter(found.methods.values()))
    for column in ("method", f"points within {first.tolerance_mm:.0f} mm", "chance", "energy in the box", "chance",
                   "right breast", "rank correlation with random weights"):  # fmt: skip
        table.add_column(column)
    for how in found.methods.values():
        correlation = "" if how.randomised is None else f"{how.randomised.rank_correlation:.2f}"
        table.add_row(how.method, str(how.pointing), f"{how.chance:.0%}", str(how.energy), f"{how.energy_chance:.0%}",
                      str(how.side), correlation)  # fmt: skip
        others: dict[str, ShareFigure] = {}
        others |= {f"  {kind}, {row.women} women": row.pointing for kind, row in how.lesions.items()}
        others |= {"  initial weights": how.initial.pointing} if how.initial is not None else {}
        others |= {"  random encoder": how.randomised.pointing} if how.randomised is not None else {}
        for name, pointing in others.items():
            table.add_row(name, str(pointing))
    Console().print(table)


def _title(found: MapFigures) -> str:
    first = next(iter(found.methods.values()))
    text = f"{first.women} {found.cohort} with a cancer that the model never saw, {first.films} films"
    if found.encoder is not None:
        text += f"; view encoder moved {found.encoder.moved:.1%} from its start"
        text += " under differential privacy" if found.encoder.private and found.encoder.moved else ""
    return text


def _released(folder: Path) -> Run:
    released = ReleasedModel.read(folder)
    terms = released.protocol.pipeline
    pipeline = default_pipeline(height=terms.height, width=terms.width, spacing_mm=terms.spacing_mm)
    return Run(protocol=released.protocol, weights=released.weights, initial=None, wanted=_everybody,
               pipeline=pipeline)  # fmt: skip


def _everybody(patient_id: str) -> bool:
    return True
