"""How well the model's heat maps point to lesions, out of `localisation.json`: rows and sentences for the reports.

Also for the passport, which states it among the limits: the sentence then stands under the passport's signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from shared_model.errors import WeightsError
from shared_model.map_figures import (
    LOCALISATION,
    NOT_MEASURED,
    UNSIGNED,
    MapFigure,
    MapFigures,
    MethodFigure,
    read_map_figures,
)
from shared_model.passport import PASSPORT, SignedPassport

DEFAULT_METHOD: Final = "hirescam"  # of a site's pages and pictures; `shared_model.explanation` imports torch
NAMES: Final = {
    "hirescam": "HiResCAM", "gradcam": "Grad-CAM", "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
}  # fmt: skip
Row = Mapping[str, str]


def figures_of(run_dir: Path, model_sha256: object) -> tuple[MapFigures | None, str]:
    """The run's figures, or None and why there are none. model_sha256: of the model that the study chose."""
    try:
        found = read_map_figures(run_dir / LOCALISATION, model_sha256=str(model_sha256 or ""),
                                 remedy="`mammofed simulate localise` measures again")  # fmt: skip
    except WeightsError as error:
        return None, f"{NOT_MEASURED} ({error})"
    if found is None or not found.methods:
        return None, NOT_MEASURED + (f" ({found.reason}.)" if found is not None and found.reason else "")
    return found, ""


def sentence_of(run_dir: Path, model_sha256: object) -> str:
    """What a map of this model by the default method is worth."""
    found, why = figures_of(run_dir, model_sha256)
    return why if found is None else f"{NAMES[DEFAULT_METHOD]}. {found.words(DEFAULT_METHOD)}"


def maps_part(run_dir: Path, model_sha256: object) -> Mapping[str, Any]:
    """Values for the template: `rows` of a table (empty where nothing was measured), `encoder`, `words`."""
    found, why = figures_of(run_dir, model_sha256)
    if found is None:
        return {"rows": [], "words": why, "encoder": ""}
    rows = [row for name, figure in found.methods.items() for row in rows_of(NAMES.get(name, name), figure)]
    first = next(iter(found.methods.values()))
    words = f"{sentence_of(run_dir, model_sha256)} {_unsigned(run_dir)}".rstrip()
    return {"rows": rows, "words": words, "encoder": encoder_words(found),
            "tolerance": f"{first.tolerance_mm:.0f} mm", "cohort": first.cohort}  # fmt: skip


def _unsigned(run_dir: Path) -> str:
    """That the passport of this run does not name the figures, where it does not."""
    if not (run_dir / PASSPORT).exists():
        return ""
    named = SignedPassport.read(run_dir / PASSPORT).passport.files
    return "" if any(part.name == LOCALISATION for part in named) else UNSIGNED


def rows_of(name: str, found: MethodFigure) -> Iterator[Row]:
    """The model, its kinds of lesions, what it began from, and random weights; each with its n."""
    yield _row(name, found)
    for kind, figure in sorted(found.lesions.items(), reverse=True):
        if len(found.lesions) > 1:
            yield _row(f"{name}, {kind}", figure)
    if found.initial is not None:
        yield _row(f"{name}, weights that training began with", found.initial)
    if (other := found.randomised) is not None:
        n = f"{found.women:,} ({found.films:,})"
        yield {"name": f"{name}, view encoder drawn anew", "n": n, "pointing": str(other.pointing), "chance": "–",
               "inside": "–", "energy": "–", "energy_chance": "–", "side": "–",
               "correlation": f"{other.rank_correlation:.2f}"}  # fmt: skip


def encoder_words(found: MapFigures) -> str:
    """Whether these are the maps of the weights that training began with."""
    if found.encoder is None:
        return ""
    if not found.encoder.moved:
        return "The view encoder is the one that training began with: the recipe left it as it is."
    how = "under differential privacy" if found.encoder.private else "without differential privacy"
    return (f"The view encoder was trained, {how}: its weights moved by {found.encoder.moved:.1%} of their norm, so "
            "figures of the initial weights do not hold for it.")  # fmt: skip


def arms_part(arms: Mapping[str, Any]) -> list[Row]:
    """Rows of a comparison: each arm's shared model, all populations together."""
    rows: list[Row] = []
    for name, arm in arms.items():
        if (found := arm.get("maps")) is None:
            continue
        moved = found["moved"]
        rows.append({
            "arm": name.replace("_", " "), "n": f"{found['women']:,} ({found['films']:,})",
            "pointing": _bounds(found, "pointing"), "chance": f"{found['chance']:.0%}",
            "initial": _bounds(found, "initial") if found.get("initial") is not None else "the same",
            "moved": "not" if not moved else f"by {moved:.1%}", "correlation": f"{found['rank_correlation']:.2f}",
        })  # fmt: skip
    return rows


def _bounds(found: Mapping[str, Any], name: str) -> str:
    low, high = found[f"{name}_low"], found[f"{name}_high"]
    return f"{found[name]:.0%}" + ("" if low is None or high is None else f" ({low:.0%} to {high:.0%})")


def _row(name: str, found: MapFigure) -> Row:
    return {"name": name, "n": f"{found.women:,} ({found.films:,})", "pointing": str(found.pointing),
            "chance": f"{found.chance:.0%}", "inside": str(found.inside), "energy": str(found.energy),
            "energy_chance": f"{found.energy_chance:.0%}", "side": str(found.side), "correlation": "–"}  # fmt: skip
