"""Bytes that nobody meant: whatever is in a file, the answer is a film, a view or a reason, in bounded time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared_model.errors import ImagingError
from shared_model.imaging import REASONS, Film, FilmPool, PipelineConfig, View, read_header

SYNTAXES = ("explicit", "implicit", "rle", "jpeg_ls", "jpeg_lossless", "jpeg_2000")


@pytest.fixture(scope="module")
def originals(films: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small film in each transfer syntax."""
    folder = tmp_path_factory.mktemp("originals")
    pixels = films.breast_film(rows=64, columns=48)
    paths = {s: folder / f"{s}.dcm" for s in SYNTAXES}
    for syntax, path in paths.items():
        films.write_film(path, films.film_dataset(pixels, spacing_mm=2), syntax=syntax)
    return {syntax: path.read_bytes() for syntax, path in paths.items()}


EDIT = st.tuples(st.floats(0, 1), st.sampled_from(["set", "cut", "insert", "length"]), st.integers(0, 255))


def edited(data: bytes, edits: list[tuple[float, str, int]]) -> bytes:
    out = bytearray(data)
    for place, kind, value in edits:
        at = 132 + int(place * max(0, len(out) - 133))
        if kind == "set" and out:
            out[min(at, len(out) - 1)] = value
        elif kind == "cut":
            del out[at : at + value]
        elif kind == "insert":
            out[at:at] = bytes([value]) * 3
        else:  # a length field of an element: the greatest there is
            out[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(out)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(syntax=st.sampled_from(SYNTAXES), edits=st.lists(EDIT, min_size=1, max_size=6), near=st.booleans())
def test_a_header_gives_a_film_or_a_reason(
    originals: dict[str, bytes], config: PipelineConfig, tmp_path: Path, syntax: str,
    edits: list[tuple[float, str, int]], near: bool,
) -> None:  # fmt: skip
    if near:  # most of a header lies in the first kilobyte
        edits = [(place * 1200 / len(originals[syntax]), kind, value) for place, kind, value in edits]
    path = tmp_path / "f.dcm"
    path.write_bytes(edited(originals[syntax], edits))
    try:
        assert isinstance(read_header(path, config), Film)
    except ImagingError as error:
        assert error.reason in REASONS and "SYNTH" not in str(error)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), mark=st.booleans())
def test_bytes_at_random_give_a_reason(config: PipelineConfig, tmp_path: Path, data: bytes, mark: bool) -> None:
    path = tmp_path / "f.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM" + data if mark else data)
    with pytest.raises(ImagingError) as caught:
        read_header(path, config)
    assert caught.value.reason in REASONS


def test_damaged_codestreams_go_through_the_decoders_without_stopping_the_run(
    originals: dict[str, bytes], config: PipelineConfig, tmp_path: Path
) -> None:
    """In worker processes, as always, because a decoder is a C library: what it does to its worker is its own loss."""
    rng = np.random.default_rng(11)
    paths = []
    for number in range(240):
        syntax = SYNTAXES[number % len(SYNTAXES)]
        data = bytearray(originals[syntax])
        start = data.rindex(b"\xe0\x7f\x10\x00")  # Pixel Data: behind it are fragments and codestreams
        for place in rng.integers(start + 8, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(256)
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(data)
    began = time.monotonic()
    with FilmPool(replace(config, max_pixels=1 << 20, max_bytes=1 << 22), workers=1, film_seconds=60.0) as pool:
        results = [result for _, result in pool.run("prepare", paths)]
    assert len(results) == 240 and time.monotonic() - began < 300
    reasons = {result.reason for result in results if isinstance(result, ImagingError)}
    assert reasons <= set(REASONS) and len(reasons) > 2
    assert sum(isinstance(result, View) for result in results) > 40  # native pixels may be anything
    assert not any("SYNTH" in str(result) for result in results if isinstance(result, ImagingError))
