"""At the end of a simulated study: how well do its model's heat maps point to lesions? Called by launcher and worker.

The figure is measured on the study's own held-out women of the split `test`, before the passport is signed, so that it
goes with the model from then on: into the report, the passport and beside every map at a site. Imports no torch; what
needs it is called through `call`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final

from server.rounds.checkpoint import read_arrays
from shared_model.errors import MammoFedError
from shared_model.map_figures import LOCALISATION, write_reason
from shared_model.messages import weights_sha256
from simulations.hospitals import sources
from simulations.hospitals.sources import SYNTHETIC
from simulations.lesions import count_women, unseen_women
from simulations.parties import HELD_OUT
from simulations.plan import pipeline_of

METHOD: Final = "hirescam"  # that sites show; the others: `mammofed simulate localise RUN_DIR`
LEAST_WOMEN: Final = 20  # with fewer the interval is some 40 points of percent wide, which is no figure
COHORT: Final = "synthetic women"


def measure_maps(
    config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None], call: Callable[..., str]
) -> None:
    """Write `localisation.json`, unless `localise` is 0 or nobody knows the women's lesions. A study that is COMPLETE
    stays so when this fails: then the maps were not measured, which every map says.

    say: a line for the person who watches. call: runs a function with its arguments, where torch may be imported.
    """
    if not (most := int(config.get("localise") or 0)) or config["cohort"]["kind"] != SYNTHETIC:
        return
    cache = Path(config["cache"] or Path.home() / ".cache" / "mammofed").expanduser()
    try:
        source = sources(config, cache, pipeline=pipeline_of(dict(config)), workers=config["workers"] or os.cpu_count()
                         or 1, progress=lambda done, total: None)[HELD_OUT]  # fmt: skip
        known = count_women(source, unseen_women(run_dir, seed=int(config["seed"])))
        if known < LEAST_WOMEN:
            reason = f"of the test women {known} have a lesion on a film; fewer than {LEAST_WOMEN} give no figure"
            sha256 = weights_sha256(read_arrays(run_dir / "model.safetensors"))
            write_reason(run_dir / LOCALISATION, model_sha256=sha256, cohort=COHORT, reason=reason)
            return
        say(f"Check heat maps against the lesions of up to {most} unseen women (localise=0: not)")
        say("Heat maps: " + call(_measure, run_dir, dict(config), source, most))
    except (MammoFedError, BrokenProcessPool, OSError, RuntimeError) as error:
        say(f"Heat maps were not measured: {error}")


def _measure(run_dir: Path, config: dict[str, Any], source: Path, most: int) -> str:
    from simulations.localise import localise_run, read_run

    found = localise_run(run_dir, read_run(run_dir, config), source, women=most, methods=(METHOD,), least=LEAST_WOMEN)
    return found.words(METHOD)
