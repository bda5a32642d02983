"""Colours of clothes and of manufactured things."""

import colorsys

import numpy as np


_CLOTH_COLOURS = np.array(
    [[0.04, 0.04, 0.05], [0.10, 0.10, 0.12], [0.92, 0.92, 0.90], [0.80, 0.80, 0.80], [0.45, 0.46, 0.48],
     [0.10, 0.14, 0.28], [0.18, 0.25, 0.42], [0.36, 0.45, 0.60], [0.60, 0.52, 0.40], [0.34, 0.26, 0.18],
     [0.28, 0.30, 0.18], [0.70, 0.10, 0.12]]
)  # fmt: skip


def cloth_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour that clothes have: often black, white, grey, navy or denim, else any hue."""
    if rng.random() < 0.55:
        colour = _CLOTH_COLOURS[rng.integers(len(_CLOTH_COLOURS))] + rng.normal(0, 0.03, 3)
    else:
        colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.25, 0.95), rng.uniform(0.25, 0.98)))
    return np.clip(colour, 0.02, 0.98)


def rgb(colour: np.ndarray) -> tuple[int, int, int]:
    """A colour of three numbers in 0..1, clipped to that range, as Pillow takes it."""
    red, green, blue = (int(255 * min(max(float(c), 0.0), 1.0)) for c in colour)
    return red, green, blue
