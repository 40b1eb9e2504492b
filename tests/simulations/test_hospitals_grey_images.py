"""PNG and PGM films: read to the bit, bounded by their headers before anything is decoded, refused in words."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_model.errors import CohortError
from simulations.hospitals.grey_images import read_grey
from tests.public_sets import write_pgm, write_png

LIMITS = {"max_pixels": 1 << 16, "max_bytes": 1 << 20}
RAMP = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)


def png(*, width: int, height: int, bits: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG file by its chunks, with whatever its header claims."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("greatest", [255, 4095, 65535])
def test_pgm_keeps_every_grey(tmp_path: Path, greatest: int) -> None:
    pixels = RAMP % 256 if greatest == 255 else RAMP
    write_pgm(tmp_path / "film.pgm", pixels, greatest=greatest)
    image = read_grey(tmp_path / "film.pgm", **LIMITS)
    assert np.array_equal(image.pixels_HW, pixels)
    assert image.bits == greatest.bit_length() and image.pixels_HW.dtype == ("u1" if greatest == 255 else "u2")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_keeps_every_grey(tmp_path: Path, dtype: type[np.uint8] | type[np.uint16]) -> None:
    pixels = (RAMP * (97 if dtype is np.uint16 else 1)).astype(dtype)
    write_png(tmp_path / "film.png", pixels)
    image = read_grey(tmp_path / "film.png", **LIMITS)
    assert np.array_equal(image.pixels_HW, pixels) and image.bits == 8 * pixels.dtype.itemsize


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("truncated.pgm", b"P5\n30 20\n255\n" + bytes(599), "ends before its pixels"),
        ("huge.pgm", b"P5\n999999999 999999999\n255\n" + bytes(10), "impossible size"),
        ("empty.pgm", b"P5\n0 20\n255\n", "impossible size"),
        ("numbers.pgm", b"P5\n30 x\n255\n", "header cannot be read"),
        ("comments.pgm", b"P5\n" + b"# x\n" * 5000 + b"30 20\n255\n" + bytes(600), "header cannot be read"),
        ("grey.pgm", b"P5\n30 20\n70000\n" + bytes(1200), "greatest grey"),
        ("over.pgm", b"P5\n2 1\n100\n" + bytes([1, 101]), "greater than the PGM header allows"),
        ("text.pgm", b"P2\n2 1\n100\n1 2\n", "neither PNG nor binary PGM"),
        ("huge.png", png(width=100_000, height=100_000), "impossible size"),
        ("rgb.png", png(width=4, height=4, colour=2, pixels=bytes(52)), "not a grey image"),
        ("one_bit.png", png(width=8, height=2, bits=1, pixels=bytes(4)), "not a grey image"),
        ("short.png", png(width=30, height=20, pixels=bytes(31)), "ends before its pixels"),
        ("cut.png", png(width=30, height=20)[:30], "header cannot be read"),
        ("nothing.png", b"", "neither PNG nor binary PGM"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CohortError, match=words) as caught:
        read_grey(tmp_path / name, **LIMITS)
    assert name in str(caught.value)


def test_a_large_file_a_pipe_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    write_pgm(tmp_path / "film.pgm", RAMP % 256)
    os.mkfifo(tmp_path / "pipe.pgm")
    for name, words in (("film.pgm", "too large"), ("pipe.pgm", "no regular file"), ("gone.pgm", "cannot be read")):
        with pytest.raises(CohortError, match=words):
            read_grey(tmp_path / name, max_pixels=1 << 16, max_bytes=100)


@given(data=st.binary(max_size=60), cut=st.integers(0, 120))
def test_damage_never_ends_in_anything_but_an_error_in_words(tmp_path_factory: pytest.TempPathFactory, data: bytes,
                                                             cut: int) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("films") / "film"
    for whole in (png(width=6, height=4, pixels=bytes(28)), b"P5\n6 4\n255\n" + bytes(24)):
        path.write_bytes(whole[:cut] + data + whole[cut + len(data) :])
        try:
            image = read_grey(path, **LIMITS)
        except CohortError:
            continue
        assert image.pixels_HW.size <= LIMITS["max_pixels"]
