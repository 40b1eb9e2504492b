"""Each transfer syntax and bit depth decodes to the same film."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.errors import ImagingError
from shared_model.imaging import PipelineConfig, prepare_view
from shared_model.imaging.codecs import _unpack_bits, decode
from shared_model.imaging.header import read_film

LOSSLESS = ["implicit", "explicit", "rle", "jpeg_lossless", "jpeg_lossless_14", "jpeg_ls", "jpeg_2000"]


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_lossless_syntaxes_give_the_stored_pixels(films: ModuleType, tmp_path: Path, syntax: str, bits: int) -> None:
    stored = films.breast_film(rows=61, columns=46, bits=bits, seed=bits)  # odd sizes meet padding
    path = films.write_film(tmp_path / "f.dcm", films.film_dataset(stored, bits=bits), syntax=syntax)
    cells = decode(read_film(path, max_bytes=1 << 20), rows=61, columns=46)
    assert cells.dtype == np.uint16
    assert np.array_equal(cells, stored)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_syntaxes_give_the_same_view(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, syntax: str
) -> None:
    ds = films.film_dataset(films.breast_film(seed=1))
    plain = prepare_view(films.write_film(tmp_path / "a.dcm", ds), config)
    coded = prepare_view(films.write_film(tmp_path / "b.dcm", ds, syntax=syntax), config)
    assert plain.pixels.tobytes() == coded.pixels.tobytes()
    assert plain.pixels.dtype == np.float32 and plain.pixels.shape == (2, 112, 84)
    assert plain.pixels.min() == 0.0 and plain.pixels.max() <= 1.0


@pytest.mark.parametrize("syntax", ["jpeg_ls_near", "jpeg_2000_lossy"])
def test_lossy_syntaxes_give_nearly_the_same_view(
    films: ModuleType, config: PipelineConfig, tmp_path: Path, syntax: str
) -> None:
    ds = films.film_dataset(films.breast_film(seed=2))
    plain = prepare_view(films.write_film(tmp_path / "a.dcm", ds), config)
    lossy = prepare_view(films.write_film(tmp_path / "b.dcm", ds, syntax=syntax), config)
    assert 0 < np.abs(plain.pixels - lossy.pixels).mean() < 0.02


@pytest.mark.parametrize("syntax", ["deflated", "big_endian"])
def test_other_syntaxes_are_refused(films: ModuleType, config: PipelineConfig, tmp_path: Path, syntax: str) -> None:
    path = films.write_film(tmp_path / "f.dcm", films.film_dataset(films.breast_film()), syntax="explicit")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", films.SYNTAX[syntax].encode()[:20].ljust(20)))
    with pytest.raises(ImagingError) as caught:
        prepare_view(path, config)
    assert caught.value.reason == "unsupported_syntax"


@settings(max_examples=200)
@given(data=st.binary(min_size=1, max_size=600))
def test_rle_decoder_inverts_the_encoder(films: ModuleType, data: bytes) -> None:
    assert _unpack_bits(films._pack_bits(data), len(data)) == data


@settings(max_examples=200)
@given(code=st.binary(max_size=300), size=st.integers(1, 500))
def test_rle_decoder_gives_the_asked_size_or_refuses(code: bytes, size: int) -> None:
    try:
        assert len(_unpack_bits(code, size)) == size
    except ImagingError as error:
        assert error.reason == "truncated"
