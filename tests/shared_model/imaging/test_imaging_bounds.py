"""Whatever a header claims, nothing is allocated beyond what the file holds and the limits allow."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from shared_model.errors import ImagingError
from shared_model.imaging import PipelineConfig, prepare_view


def refused(path: Path, config: PipelineConfig, *, budget: int) -> ImagingError:
    """The refusal, and proof that Python's and numpy's allocations stayed within `budget` bytes meanwhile."""
    tracemalloc.start()
    try:
        with pytest.raises(ImagingError) as caught:
            prepare_view(path, config)
        assert tracemalloc.get_traced_memory()[1] < budget
    finally:
        tracemalloc.stop()
    return caught.value


def film(films: ModuleType, tmp_path: Path, syntax: str = "explicit") -> Path:
    return films.write_film(tmp_path / "f.dcm", films.film_dataset(films.breast_film()), syntax=syntax)


def patch(path: Path, edit: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)
    return path


def element(data: bytearray, tag: int) -> int:
    """Offset of the value of a short explicit element."""
    return data.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 300) + 8


def claim(rows: int, columns: int) -> Callable[[bytearray], None]:
    def edit(data: bytearray) -> None:
        struct.pack_into("<H", data, element(data, 0x00280010), rows)
        struct.pack_into("<H", data, element(data, 0x00280011), columns)

    return edit


def test_claimed_pixels_are_bounded_by_the_limit_and_by_the_file(
    films: ModuleType, config: PipelineConfig, tmp_path: Path
) -> None:
    path = patch(film(films, tmp_path), claim(65000, 65000))
    assert refused(path, config, budget=1 << 20).reason == "too_large"
    path = patch(path, claim(4000, 4000))
    assert refused(path, config, budget=1 << 20).reason == "truncated"


def test_a_file_above_the_limit_is_not_read(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    path = film(films, tmp_path)
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)  # a terabyte, sparse
    assert refused(path, config, budget=1 << 20).reason == "too_large"


@pytest.mark.parametrize("length", [0xFFFFFFFE, 0x7FFFFFFF, 1 << 24])
def test_claimed_lengths_of_elements_are_bounded_by_the_file(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, length: int
) -> None:
    ds = films.film_dataset(films.breast_film())
    ds.add_new(0x00091010, "OB", b"private data")
    path = films.write_film(tmp_path / "f.dcm", ds)

    def edit(data: bytearray) -> None:
        at = data.index(b"private data")
        struct.pack_into("<L", data, at - 4, length)

    assert refused(patch(path, edit), config, budget=1 << 20).reason in ("truncated", "damaged_header")

    def pixel_length(data: bytearray) -> None:
        struct.pack_into("<L", data, data.index(struct.pack("<HH", 0x7FE0, 0x0010), 300) + 8, length)

    path = patch(film(films, tmp_path), pixel_length)  # more than enough is claimed, what is needed is there
    assert prepare_view(path, config).view == "L_CC"


def test_deep_nesting_is_refused(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    sequence = struct.pack("<HH2sHL", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    item = sequence + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path = film(films, tmp_path)
    data = path.read_bytes()
    at = data.index(struct.pack("<HH2s", 0x0010, 0x0020, b"LO"), 300)
    path.write_bytes(data[:at] + item * 20_000 + data[at:])
    error = refused(path, config, budget=64 << 20)
    assert error.reason in ("damaged_header", "truncated")


@pytest.mark.parametrize("syntax", ["jpeg_2000", "jpeg_ls", "jpeg_lossless"])
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, syntax: str
) -> None:
    def edit(data: bytearray) -> None:
        if syntax == "jpeg_2000":
            at = data.index(b"\xff\x4f\xff\x51")
            struct.pack_into(">LL", data, at + 8, 60000, 60000)
        else:
            at = data.index(b"\xff\xf7" if syntax == "jpeg_ls" else b"\xff\xc3")
            struct.pack_into(">HH", data, at + 5, 65535, 65535)

    error = refused(patch(film(films, tmp_path, syntax), edit), config, budget=1 << 20)
    assert error.reason == "codestream_mismatch"
    assert "65535" in str(error) or "60000" in str(error)


def test_more_components_than_one_are_refused(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    def edit(data: bytearray) -> None:
        struct.pack_into(">H", data, data.index(b"\xff\x4f\xff\x51") + 40, 16384)

    error = refused(patch(film(films, tmp_path, "jpeg_2000"), edit), config, budget=1 << 20)
    assert error.reason == "codestream_mismatch"


def test_an_rle_bomb_is_cut_at_the_size_of_the_film(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    path = film(films, tmp_path, "rle")
    data = path.read_bytes()
    start = data.index(b"\xfe\xff\x00\xe0", data.index(b"\xe0\x7f\x10\x00") + 20)
    bomb = b"\x81\xff" * (1 << 20)  # 2 MiB that would be 128 MiB
    frame = struct.pack("<16L", 2, 64, 64 + len(bomb), *[0] * 13) + bomb + bomb
    path.write_bytes(data[: start + 4] + struct.pack("<L", len(frame)) + frame + b"\xfe\xff\xdd\xe0\0\0\0\0")
    error = refused(path, replace(config, max_bytes=1 << 24), budget=32 << 20)
    assert error.reason == "constant_pixels"  # decoded to 160 x 128 pixels of one grey, no more


def test_number_of_frames_is_not_multiplied(films: ModuleType, config: PipelineConfig, tmp_path: Path) -> None:
    ds = films.film_dataset(films.breast_film())
    ds.NumberOfFrames = 2_000_000_000
    path = films.write_film(tmp_path / "f.dcm", ds)
    assert refused(path, config, budget=1 << 20).reason == "multi_frame"
