"""A heat map over a film, in the film's own geometry: RGB with a strip of words below; used by results and reports.

Colours go from dark over magenta to yellow and rise in brightness throughout (matplotlib's inferno), so that a reader
who cannot tell red from green, or a grey screen, sees the same order. No identity is written into the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LEAST_COLUMNS = 640  # a smaller film is enlarged by a whole number, so that words and map can be seen
SHOWN_FROM = 0.15  # of the exam's greatest value; below it the film shows undisturbed
STRONGEST = 0.6  # opacity at the greatest value
Rgb = NDArray[np.uint8]


def overlay(film: NDArray[np.uint8], heat: NDArray[np.float32], *, top: float) -> Rgb:
    """uint8 [rows, columns, 3]: the film with the map over it.

    Args:
        film: uint8 [rows, columns], tissue bright. heat: float32 of the same shape, at least 0.
        top: the value that gets the last colour, the greatest of all films of the exam: films can then be compared.
    """
    mixed: Rgb = np.repeat(film[:, :, None], 3, axis=2)
    share = np.clip(heat / top, 0.0, 1.0) if top > 0 else np.zeros_like(heat)
    seen = share > SHOWN_FROM  # of a film of twelve million pixels a few in a hundred: the rest costs seconds
    part, grey = share[seen], mixed[seen].astype(np.float32)
    colour = np.asarray(matplotlib.colormaps["inferno"](0.25 + 0.75 * part)[:, :3] * 255.0, dtype=np.float32)
    opacity = (STRONGEST * ((part - SHOWN_FROM) / (1 - SHOWN_FROM)) ** 0.5)[:, None]
    mixed[seen] = np.rint(grey * (1 - opacity) + colour * opacity).astype(np.uint8)
    return mixed


def enlarge(rgb: Rgb, *, least_columns: int = LEAST_COLUMNS) -> tuple[Rgb, int]:
    """The picture and the whole number by which it was enlarged."""
    factor = max(1, math.ceil(least_columns / rgb.shape[1]))
    return np.repeat(np.repeat(rgb, factor, axis=0), factor, axis=1), factor


def with_words(rgb: Rgb, lines: Sequence[str]) -> Rgb:
    """The picture with a black strip of words below it, wrapped to its width; its own pixels stay in place."""
    size = max(12, rgb.shape[1] // 52)
    font = ImageFont.load_default(size)
    wide = rgb.shape[1] - 2 * size
    wrapped = [part for line in lines for part in _wrap(line, font, wide)]
    strip = Image.new("RGB", (rgb.shape[1], size + len(wrapped) * (size * 13 // 10) + size // 2))
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(wrapped):
        draw.text((size, size // 2 + number * (size * 13 // 10)), line, fill=(255, 255, 255), font=font)
    return np.concatenate([rgb, np.asarray(strip)], axis=0)


def _wrap(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, wide: int) -> list[str]:
    lines, current = [], ""
    for word in line.split():
        longer = f"{current} {word}".strip()
        if current and font.getlength(longer) > wide:
            lines.append(current)
            longer = word
        current = longer
    return [*lines, current]
