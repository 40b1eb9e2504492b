"""A case: how a study is disturbed, and what its end must be; and the references that ends are compared with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared_model.errors import MammoFedError
from simulations.faults.ending import Ending, as_planned
from simulations.faults.lab import Lab
from simulations.faults.result import Result
from simulations.faults.scene import App, Scene, Unmet

Judge = Callable[[Ending, Ending], list[str]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One disturbance.

    name: group/what/where. play: disturbs the study of a scene and brings it to its end; returns a word on the way.
    judge: differences between this end and the reference's. app: makes what stands for the courier, given the folder.
    reference: how the study is scripted that this one must equal; "" for the undisturbed one.
    """

    name: str
    play: Callable[[Scene], str]
    judge: Judge
    flavour: str = "plain"
    app: Callable[[Path], App] | None = None
    reference: str = ""


class Runner:
    """Runs cases one after another in folders under `root`; references are made when the first case needs them.

    Args:
        scripts: name of a reference -> its courier's app; "" is the plain courier.
        keep: leave the folders of cases that failed, for a look.
    """

    def __init__(self, root: Path, scripts: dict[str, Callable[[Path], App]], *, keep: bool = False) -> None:
        self._root, self._lab, self._scripts, self._keep = root, Lab(root / "lab"), scripts, keep
        self._references: dict[tuple[str, str], Ending] = {}

    def run(self, case: Case) -> Result:
        """Play a case and judge its end; whatever goes wrong is the result's."""
        began, folder = time.monotonic(), self._root / case.name.replace("/", "-")
        faults: list[str] = []
        end = ""
        try:
            expected = self._reference(case.flavour, case.reference)
            with self._scene(case.flavour, folder, case.app) as scene:
                way = case.play(scene)
            found = Ending.read(scene.copy)
            for words, ending in [*scene.endings, ("", found)]:
                faults += [f"{words}: {fault}" if words else fault for fault in case.judge(ending, expected)]
            end = ", ".join(filter(None, (way, found.status)))
        except (MammoFedError, OSError) as error:
            faults = [f"{type(error).__name__}: {error}"]
        if not (faults and self._keep):
            shutil.rmtree(folder, ignore_errors=True)
        return Result(name=case.name, end=end, faults=tuple(faults), seconds=time.monotonic() - began)

    def _reference(self, flavour: str, script: str) -> Ending:
        key = flavour, script
        if key not in self._references:
            folder = self._root / f"reference-{flavour}{script}"
            with self._scene(flavour, folder, self._scripts.get(script)) as scene:
                scene.start()
                scene.complete()
            ending = Ending.read(scene.copy)
            faults = [] if script else as_planned(ending)
            if faults:
                raise Unmet(faults[0])
            self._references[key] = ending
        return self._references[key]

    def _scene(self, flavour: str, folder: Path, app: Callable[[Path], App] | None) -> Scene:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if app is None:
            return Scene(self._lab, flavour, folder)
        return Scene(self._lab, flavour, folder, app=app(folder))
