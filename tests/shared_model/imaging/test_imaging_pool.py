"""Many films in parallel: in order, bounded, and a worker that dies costs at most the film it died of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from shared_model.errors import ImagingError
from shared_model.imaging import (
    Film,
    FilmPool,
    FilmRefusedError,
    PipelineConfig,
    View,
    pool,
    prepare_view,
    prepare_views,
)


@pytest.fixture(scope="module")
def paths(films: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    return [
        films.write_film(folder / f"{i}.dcm", films.film_dataset(films.breast_film(seed=i)), syntax=syntax)
        for i, syntax in enumerate(["explicit", "rle", "jpeg_ls", "jpeg_2000", "jpeg_lossless", "implicit"] * 3)
    ]


def test_results_come_in_order_and_equal_those_of_one_process(paths: list[Path], config: PipelineConfig) -> None:
    seen: list[tuple[int, int]] = []
    results = list(prepare_views(paths, config, workers=2, progress=lambda *done: seen.append(done)))
    assert [index for index, _ in results] == list(range(len(paths)))
    assert seen == [(i + 1, len(paths)) for i in range(len(paths))]
    for path, (_, view) in zip(paths, results, strict=True):
        alone = prepare_view(path, config)
        assert isinstance(view, View)
        assert view.pixels.tobytes() == alone.pixels.tobytes()
        assert (view.view, view.patient_id, view.sop_uid, view.spacing_mm, view.factor, view.age_years) == (
            alone.view, alone.patient_id, alone.sop_uid, alone.spacing_mm, alone.factor, alone.age_years,
        )  # fmt: skip


def test_refusals_come_as_results_with_their_owner(paths: list[Path], config: PipelineConfig, tmp_path: Path) -> None:
    (tmp_path / "page.dcm").write_text("<html>")
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(paths[0].read_bytes()[:-100])
    odd = tmp_path / os.fsdecode(b"caf\xe9.dcm")  # a name that is no UTF-8
    odd.write_bytes(paths[0].read_bytes())
    results = [r for _, r in prepare_views([tmp_path / "page.dcm", cut, odd], config, workers=1)]
    assert isinstance(results[0], ImagingError) and results[0].reason == "not_dicom"
    assert isinstance(results[1], FilmRefusedError) and results[1].reason == "truncated"
    assert results[1].patient_id == "SYNTH-T-00001" and "SYNTH" not in str(results[1])
    assert isinstance(results[2], View)


def test_headers_are_read_by_the_same_pool(paths: list[Path], config: PipelineConfig) -> None:
    with FilmPool(config, workers=1) as films:
        headers = [result for _, result in films.run("header", paths)]
        views = [result for _, result in films.run("prepare", paths[:2])]
    assert all(isinstance(header, Film) for header in headers)
    assert headers[0].spacing_mm == (1.25, 1.25) and isinstance(views[0], View)  # type: ignore[union-attr]


def deadly(monkeypatch: pytest.MonkeyPatch, path: Path, how: signal.Signals, times: int) -> list[int]:
    """Each of the first `times` workers that get `path` gets the signal too."""
    hit: list[int] = []
    give = pool._Worker.give

    def give_and_kill(self: pool._Worker, index: int, work: str, given: Path) -> None:
        if given == path and len(hit) < times:
            hit.append(self.process.pid)
            os.kill(self.process.pid, how)
        give(self, index, work, given)

    monkeypatch.setattr(pool._Worker, "give", give_and_kill)
    return hit


def test_a_film_that_kills_its_worker_costs_only_itself(
    paths: list[Path], config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The film is alone in a worker's hands at the end, so that the death can be nobody else's.
    hit = deadly(monkeypatch, paths[-1], signal.SIGSEGV, times=99)
    monkeypatch.setattr(pool, "_AHEAD", 1)
    results = dict(prepare_views(paths, config, workers=2))
    assert len(hit) == 2
    crashed = [index for index, result in results.items() if not isinstance(result, View)]
    assert crashed == [len(paths) - 1]
    assert isinstance(results[crashed[0]], ImagingError) and results[crashed[0]].reason == "decoder_crashed"  # type: ignore[union-attr]


def test_a_worker_that_is_killed_from_outside_costs_nothing(
    paths: list[Path], config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = deadly(monkeypatch, paths[3], signal.SIGKILL, times=1)
    results = list(prepare_views(paths, config, workers=2))
    assert len(hit) == 1
    assert all(isinstance(result, View) for _, result in results)


def test_a_film_that_takes_for_ever_is_given_up(
    paths: list[Path], config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly(monkeypatch, paths[2], signal.SIGSTOP, times=1)
    monkeypatch.setattr(pool, "_AHEAD", 1)
    give = pool._Worker.give

    def long_ago(self: pool._Worker, index: int, work: str, path: Path) -> None:
        """The film that stands still was begun an hour ago; the others have all the time that a busy machine takes."""
        give(self, index, work, path)
        if path == paths[2]:
            self.since -= 3600.0

    monkeypatch.setattr(pool._Worker, "give", long_ago)
    with FilmPool(config, workers=1, film_seconds=600.0) as films:
        results = [result for _, result in films.run("prepare", paths[:5])]
    assert [getattr(result, "reason", "view") for result in results] == ["view", "view", "timed_out", "view", "view"]


def test_workers_end_with_the_pool_and_with_their_parent(paths: list[Path], config: PipelineConfig) -> None:
    with FilmPool(config, workers=2) as films:
        for _ in films.run("prepare", paths):
            break  # the caller stops early
        processes = [worker.process for worker in films._workers]
        assert all(process.poll() is None for process in processes)
    assert all(process.poll() is not None for process in processes)
    with pytest.raises(ValueError, match="at least 1"):
        FilmPool(config, workers=0)


def test_memory_of_finished_views_is_bounded(
    paths: list[Path], config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the first film held back, the others may run ahead by the window only."""
    deadly(monkeypatch, paths[0], signal.SIGSTOP, times=1)
    monkeypatch.setattr(pool, "_WINDOW", 3)
    monkeypatch.setattr(pool, "_AHEAD", 1)
    given: list[int] = []
    give = pool._Worker.give

    def counted(self: pool._Worker, index: int, work: str, path: Path) -> None:
        given.append(index)
        give(self, index, work, path)

    monkeypatch.setattr(pool._Worker, "give", counted)
    with FilmPool(config, workers=2, film_seconds=3.0) as films:  # of the first alone it matters
        run = films.run("prepare", paths)
        _, first = next(run)
        assert isinstance(first, ImagingError) and first.reason == "timed_out"
        assert max(given) < 2 * 3


def test_workers_have_a_memory_limit_and_one_thread(config: PipelineConfig, paths: list[Path]) -> None:
    with FilmPool(config, workers=1) as films:
        list(films.run("header", paths[:1]))
        process = films._workers[0].process.pid
        limits = Path(f"/proc/{process}/limits").read_text()
        soft = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
        memory = (1 << 30) + 64 * config.max_pixels + 3 * config.max_bytes
        assert int(soft["Max data size"]) == memory and int(soft["Max address space"]) == memory + (4 << 30)
        assert soft["Max core file size"] == soft["Max file size"] == "0"  # a crash leaves nothing of a woman behind
        assert b"OMP_NUM_THREADS=1\0" in Path(f"/proc/{process}/environ").read_bytes()


def test_reading_films_needs_neither_torch_nor_pandas() -> None:
    code = "import sys, shared_model.imaging.worker; print([m for m in ('torch', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
