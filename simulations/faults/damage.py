"""Files changed on the disk while nobody looked: each region of each file, found in words, or without any effect.

The coordinator is killed when round 2 is closed. Then, region by region, a fresh copy of its run directory (or of a
site's state) is damaged and the study resumed. It must either refuse with a numbered exit code and words, or come to
the very end of the undisturbed study; never to another end. At last the good copy completes.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from client.privacy.ledger import Ledger
from shared_model.errors import ProtocolError, QuorumError, RoundError, StorageError, WeightsError
from simulations.faults.case import Case
from simulations.faults.ending import Ending, judge_private, same_model
from simulations.faults.lab import SERVER, SITES
from simulations.faults.points import Point
from simulations.faults.scene import Scene, Unmet

REFUSALS = {kind.exit_code for kind in (StorageError, ProtocolError, WeightsError, QuorumError, RoundError)}
Damage = tuple[str, bytes | None]  # where, in words; the content, None: the file is gone
RUN_FILES = ("checkpoints/round-0002.safetensors", "checkpoints/round-0001.safetensors",
             "checkpoints/round-0000.safetensors", "protocol.json", "initial.safetensors", "journal.sqlite",
             "journal.sqlite-wal")  # fmt: skip


def damage_cases() -> list[Case]:
    """Every file of a run directory; of a site, its stored reply, and under privacy its ledger."""
    run = [Case(name=f"damage/{SERVER}/{name}", play=partial(damage_run, name=name), judge=partial(same_but, name=name))
           for name in RUN_FILES]  # fmt: skip
    reply = Case(name=f"damage/{SITES[0]}/stored-reply", play=damage_reply, judge=same_model)
    ledger = Case(name=f"damage/{SITES[0]}/ledger", play=damage_ledger, judge=judge_private, flavour="private")
    return [*run, reply, ledger]


def same_but(found: Ending, expected: Ending, *, name: str) -> list[str]:
    """The same end, but for the damaged file itself: the checkpoint of the initial weights, say, is read by nobody."""
    rest = [{key: value for key, value in ending.checkpoints.items() if key != Path(name).name}
            for ending in (found, expected)]  # fmt: skip
    return same_model(replace(found, checkpoints=rest[0]), replace(expected, checkpoints=rest[1]))


def regions(data: bytes, *, places: int = 12) -> Iterator[Damage]:
    """A file's damages: one bit flipped in each region, cut short, emptied, longer, gone."""
    last = len(data) - 1
    spots = sorted({0, 7, 8, last, *(last * i // places for i in range(places))} & set(range(len(data))))
    for spot in spots:
        yield f"byte {spot} of {len(data)}", data[:spot] + bytes([data[spot] ^ 0x10]) + data[spot + 1 :]
    yield "the last byte cut off", data[:-1]
    yield "cut in half", data[: len(data) // 2]
    yield "empty", b""
    yield "one byte more", data + b"\0"
    yield "gone", None


def damage_run(scene: Scene, *, name: str) -> str:
    """Damage one file of the run directory, region by region."""
    point = Point(SERVER, "closed")
    scene.start(point)
    scene.wait_at(point)
    scene.processes[SERVER].kill()
    run_dir, good = scene.copy.run_dir, scene.folder / "good"
    if not name.endswith("-wal"):
        _empty_the_wal(run_dir / "journal.sqlite")  # or a reader would take all from there
    shutil.copytree(run_dir, good)

    def restore() -> None:
        shutil.rmtree(run_dir)
        shutil.copytree(good, run_dir)

    return _each(scene, run_dir / name, restore, resume=scene.coordinate)


def damage_reply(scene: Scene) -> str:
    """Damage the reply that a site has stored and not sent, before the coordinator asks for it again."""
    point = Point(SITES[0], "stored")
    scene.start(point)
    parked = scene.wait_at(point)
    scene.processes[SERVER].kill()
    parked.kill()
    scene.start_trainer(SITES[0])
    (path,) = scene.copy.state(SITES[0]).glob("replies/*/round-000002-*.frame")
    return _site_file(scene, path, scene.coordinate)


def damage_ledger(scene: Scene) -> str:
    """Damage the ledger between two rounds: nothing may be trained until it is whole again."""
    point = Point(SERVER, "closed")
    scene.start(point)
    scene.wait_at(point)
    scene.processes[SERVER].kill()
    return _site_file(scene, scene.copy.state(SITES[0]) / "ledger.json", scene.coordinate)


def _site_file(scene: Scene, path: Path, resume: Callable[[], None]) -> str:
    state, good = scene.copy.state(SITES[0]), scene.folder / "good"
    names = ("replies", "ledger.json")  # not the lock, which the trainer holds
    anchor = Ledger(state / "ledger.json").anchor  # outside the state; it would tell of an older copy
    kept = {"run": scene.copy.run_dir, "anchor": anchor, **{name: state / name for name in names}}
    for name, source in kept.items():
        _copy(source, good / name)

    def restore() -> None:
        """The site's state as well: with a reply that was made meanwhile, nothing would look at the ledger."""
        for name, source in kept.items():
            _copy(good / name, source)

    return _each(scene, path, restore, resume=resume)


def _each(scene: Scene, path: Path, restore: Callable[[], None], *, resume: Callable[[], None]) -> str:
    """Damage, resume, note the end, restore; at last resume the good copy."""
    refused, without_effect = 0, 0
    for where, content in regions(path.read_bytes()):
        restore()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        resume()
        code = scene.finish()
        if code == 0:
            without_effect += 1
            scene.endings.append((f"{path.name}, {where}", Ending.read(scene.copy)))
        elif code in REFUSALS and scene.words:
            refused += 1
        else:
            raise Unmet(f"{path.name}, {where}: neither refused nor without effect",
                        found=f"exit code {code}: {scene.words or 'no words'}")  # fmt: skip
    restore()
    resume()
    scene.complete()
    return f"{refused} refused, {without_effect} without effect"


def _copy(source: Path, target: Path) -> None:
    """Put a file or folder in place of another; what is not there is left out."""
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy(source, target)


def _empty_the_wal(journal: Path) -> None:
    connection = sqlite3.connect(journal)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
