"""What a camera does to a scene: blur, exposure, colour casts, noise and compression."""

import io

import numpy as np
from PIL import Image, ImageFilter


def photograph(rng: np.random.Generator, scene: Image.Image) -> Image.Image:
    """Passes an RGB scene through a random camera."""
    picture = scene
    choice = rng.random()
    if choice < 0.35:
        picture = picture.filter(ImageFilter.BoxBlur(float(rng.uniform(0.3, 1.2))))
    elif choice < 0.43:
        picture = _shaken(rng, picture)
    elif choice < 0.53:
        zoom = rng.uniform(0.4, 0.8)
        small = (max(8, round(scene.width * zoom)), max(8, round(scene.height * zoom)))
        picture = picture.resize(small, Image.Resampling.BILINEAR).resize(scene.size, Image.Resampling.BICUBIC)
    picture = _exposed(rng, picture)
    if rng.random() < 0.7:
        picture = _noisy(rng, picture)
    if rng.random() < 0.06:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < 0.6:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(35, 96)))
        picture = Image.open(file).convert("RGB")
    return picture


def _exposed(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Automatic exposure, gamma, contrast, brightness, haze and a colour cast, as one table per channel."""
    mean = max(1.0, float(np.asarray(picture.resize((16, 16), Image.Resampling.BOX)).mean()))
    gain = np.clip(rng.uniform(80, 150) / mean, 0.6, 2.5) ** 0.85
    levels = np.linspace(0, 1, 256)
    gamma, contrast = np.exp(rng.normal(0, 0.16)), np.exp(rng.normal(0.02, 0.14))
    brightness, haze = rng.normal(0, 0.04), max(0.0, rng.normal(0, 0.05))
    cast = np.exp(rng.normal(0, 0.05, 3))
    table = (((levels * gain) ** gamma - 0.5) * contrast + 0.5 + brightness) * (1 - haze) + haze * 0.8
    return picture.point(np.clip(np.outer(cast, table) * 255, 0, 255).astype(np.uint8).ravel().tolist())


def _shaken(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Motion blur along a short line."""
    values = np.asarray(picture)
    length, angle = rng.uniform(2, 0.015 * picture.width + 3), rng.uniform(0, np.pi)
    steps = np.linspace(-0.5, 0.5, 5) * length
    shifts = np.round(np.stack([np.sin(angle) * steps, np.cos(angle) * steps], axis=1)).astype(int)
    reach = int(np.abs(shifts).max())
    padded = np.pad(values, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros(values.shape, dtype=np.uint16)
    for dy, dx in shifts + reach:
        total += padded[dy : dy + values.shape[0], dx : dx + values.shape[1]]
    return Image.fromarray((total // len(shifts)).astype(np.uint8))


def _noisy(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Sensor noise: fine in brightness, coarser in colour."""
    width, height = picture.size
    strength = float(rng.uniform(0.5, 7))
    fine = rng.standard_normal((height, width), dtype=np.float32) * strength
    coarse = rng.standard_normal((height // 3 + 1, width // 3 + 1, 3), dtype=np.float32) * (0.4 * strength)
    values = np.asarray(picture) + fine[..., None]
    values += np.repeat(np.repeat(coarse, 3, axis=0), 3, axis=1)[:height, :width]
    return Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))
