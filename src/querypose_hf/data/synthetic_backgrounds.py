"""Backgrounds without people: rooms, streets, fields, façades, foliage and noise, all from a few random numbers."""

import numpy as np
from PIL import Image, ImageDraw

from .synthetic_colours import cloth_colour, rgb
from .synthetic_surfaces import noise_tile


def draw_background(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> Image.Image:
    """A textured RGB background.

    Args:
        size (`tuple[int, int]`): width and height in pixels.
        horizon (`float`): where ground and distance meet, in pixels from the top.
    """
    kind = rng.choice(
        ["outdoors", "indoors", "facade", "foliage", "blocks", "noise"], p=[0.38, 0.30, 0.08, 0.08, 0.06, 0.10]
    )
    draw = {
        "outdoors": _outdoors, "indoors": _indoors, "facade": _facade, "foliage": _foliage, "blocks": _blocks,
        "noise": _noise,
    }[str(kind)]  # fmt: skip
    picture = draw(rng, size, horizon)
    _add_clutter(rng, picture, horizon)
    return _weathered(rng, picture)


def fractal(rng: np.random.Generator, size: tuple[int, int], grain: float, exponent: float = 1.1) -> np.ndarray:
    """Noise of shape (height, width), mean about 0 and deviation about 1; one period of it is `512 * grain` pixels."""
    width, height = size
    tile = noise_tile(exponent)
    if rng.random() < 0.5:
        tile = tile.T
    columns, rows = int(np.ceil(width / grain)) + 1, int(np.ceil(height / grain)) + 1
    x, y = rng.integers(512, size=2)
    crop = tile[np.ix_((np.arange(rows) + y) & 511, (np.arange(columns) + x) & 511)]
    if grain == 1.0:
        return crop[:height, :width]
    return np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.BILINEAR))


def _colour(rng: np.random.Generator, low: float = 0.15, high: float = 0.9, saturation: float = 0.25) -> np.ndarray:
    return np.clip(rng.uniform(low, high) * (1 + rng.normal(0, saturation, 3)), 0.02, 1.0)


def _gradient(size: tuple[int, int], top: np.ndarray, bottom: np.ndarray) -> Image.Image:
    column = np.linspace(np.clip(top, 0, 1) * 255, np.clip(bottom, 0, 1) * 255, 32)
    return Image.fromarray(column.astype(np.uint8)[:, None]).resize(size, Image.Resampling.BILINEAR)


def _multiply(picture: Image.Image, factor: np.ndarray) -> Image.Image:
    """Brightens or darkens by a factor per pixel (height, width)."""
    values = np.asarray(picture) * factor[..., None]
    return Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))


def _ground(rng: np.random.Generator, size: tuple[int, int], colour: np.ndarray) -> Image.Image:
    """Ground seen in perspective: its texture is coarse in front and fine far away."""
    width, height = size
    ground = _gradient(size, colour * rng.uniform(0.8, 1.2), colour * rng.uniform(0.7, 1.1))
    distance = 1.0 / np.linspace(0.08, 1.0, height)
    rows = (rng.uniform(8, 60) * distance).astype(np.int64) + rng.integers(512)
    spread = (np.arange(width) - width / 2) * (rng.uniform(0.1, 0.5) * distance[:, None]) + rng.integers(512)
    texture = noise_tile(0.6 if rng.random() < 0.6 else 1.1)[rows[:, None] & 511, spread.astype(np.int64) & 511]
    return _multiply(ground, 1 + texture * np.float32(rng.uniform(0.0, 0.16)))


def _outdoors(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> Image.Image:
    width, height = size
    line = int(np.clip(horizon, 2, height - 2))
    blue = np.array([[0.35, 0.55, 0.85], [0.7, 0.75, 0.8], [0.85, 0.87, 0.9], [0.9, 0.7, 0.5], [0.25, 0.3, 0.4]])[
        rng.integers(5)
    ]
    picture = Image.new("RGB", size)
    sky = _gradient((width, line), blue * rng.uniform(0.8, 1.1), blue * 0.4 + 0.58)
    clouds = np.maximum(fractal(rng, (width, line), max(1.0, width / 300), 1.6), 0) * rng.uniform(0, 0.22)
    picture.paste(_multiply(sky, 1 + clouds), (0, 0))
    ground = np.array(
        [[0.25, 0.45, 0.15], [0.45, 0.45, 0.45], [0.75, 0.66, 0.48], [0.92, 0.93, 0.96], [0.2, 0.35, 0.45],
         [0.45, 0.32, 0.22], [0.62, 0.30, 0.22], [0.2, 0.42, 0.38]]
    )[rng.integers(8)]  # fmt: skip
    picture.paste(_ground(rng, (width, height - line), ground * rng.uniform(0.7, 1.15)), (0, line))
    draw = ImageDraw.Draw(picture)
    far = rng.random()
    if far < 0.4:
        # hills or a tree line
        for layer in range(int(rng.integers(1, 4))):
            tile = noise_tile(2.3 if rng.random() < 0.5 else 1.1)
            profile = tile[
                rng.integers(512), (np.arange(0, width + 8, 8) * 128 // max(width, 1) + rng.integers(512)) & 511
            ]
            tops = line - height * (0.10 - 0.02 * layer) * np.maximum(profile * 0.5 + 1, 0.1) * rng.uniform(0.3, 1.6)
            colour = np.array([0.15, 0.30, 0.15]) * rng.uniform(0.5, 1.6) + rng.uniform(0, 0.2)
            outline = [*zip(range(0, width + 8, 8), tops.tolist(), strict=True), (width + 8, line + 1), (0, line + 1)]
            draw.polygon(outline, fill=rgb(colour))
    elif far < 0.8:
        x = -rng.uniform(0, 0.2) * width
        while x < width:
            w = rng.uniform(0.06, 0.3) * width
            top = line - rng.uniform(0.05, 0.6) * height
            _building(rng, draw, (x, top, x + w, line + rng.uniform(0, 0.02) * height))
            x += w * rng.uniform(0.8, 1.5)
    if rng.random() < 0.3:
        # lines on a court or a road
        for _ in range(int(rng.integers(1, 5))):
            start, end = rng.uniform(-0.3, 1.3, 2) * width
            y0, y1 = np.sort(rng.uniform(line, height * 1.1, 2))
            draw.line((start, y0, end, y1), fill=rgb(np.full(3, rng.uniform(0.7, 1))), width=int(rng.integers(1, 5)))
    return picture


def _building(rng: np.random.Generator, draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    wall, window = _colour(rng, 0.25, 0.85, 0.12), _colour(rng, 0.05, 0.5, 0.15)
    draw.rectangle(box, fill=rgb(wall))
    columns, rows = (int(v) for v in rng.integers(2, 8, 2))
    w, h = (right - left) / columns, (bottom - top) / rows
    fill_x, fill_y = rng.uniform(0.3, 0.8, 2)
    for c in range(columns):
        for r in range(rows):
            x, y = left + (c + 0.5 - fill_x / 2) * w, top + (r + 0.5 - fill_y / 2) * h
            draw.rectangle(
                (x, y, x + fill_x * w, y + fill_y * h), fill=rgb(window * (0.8 + 0.4 * ((c * 7 + r * 3) % 5) / 5))
            )


def _indoors(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> Image.Image:
    width, height = size
    wall = _colour(rng, 0.35, 0.9, 0.12)
    picture = _gradient(size, wall * rng.uniform(0.75, 1.1), wall)
    edge = int(np.clip(horizon + rng.uniform(0.05, 0.3) * height, 2, height - 2))
    floor = np.array([[0.5, 0.35, 0.2], [0.6, 0.58, 0.55], [0.35, 0.3, 0.28], [0.7, 0.6, 0.45]])[rng.integers(4)]
    picture.paste(_ground(rng, (width, height - edge), floor * rng.uniform(0.6, 1.2)), (0, edge))
    draw = ImageDraw.Draw(picture)
    if rng.random() < 0.35:
        corner = rng.uniform(0.1, 0.9) * width
        draw.polygon(
            [(0, 0), (corner, 0), (corner, edge), (0, edge + 0.15 * height)], fill=rgb(wall * rng.uniform(0.75, 0.95))
        )
    for _ in range(int(rng.integers(1, 6))):
        # windows, doors, pictures, shelves
        w, h = rng.uniform(0.06, 0.4) * width, rng.uniform(0.08, 0.5) * height
        x, y = rng.uniform(-0.1, 1) * width, rng.uniform(-0.05, 0.9) * edge
        frame = rgb(_colour(rng, 0.1, 0.95, 0.1))
        draw.rectangle((x, y, x + w, y + h), fill=frame)
        border = 0.06 * min(w, h) + 1
        if w > 2 * border + 2 and h > 2 * border + 2:
            pane = rng.uniform(0.4, 1.0) * np.array([0.85, 0.93, 1.0]) if rng.random() < 0.4 else _colour(rng)
            draw.rectangle((x + border, y + border, x + w - border, y + h - border), fill=rgb(pane))
            if rng.random() < 0.4:
                for i in range(1, int(rng.integers(2, 6))):
                    at = y + h * i / 5
                    draw.line((x, at, x + w, at), fill=frame, width=max(1, int(border / 2)))
    for _ in range(int(rng.integers(0, 4))):
        # furniture on the floor
        w, h = rng.uniform(0.1, 0.4) * width, rng.uniform(0.08, 0.35) * height
        x, y = rng.uniform(-0.1, 1) * width, edge + rng.uniform(0, 0.15) * height
        colour = _colour(rng, 0.1, 0.8, 0.3)
        draw.rectangle((x, y - h, x + w, y), fill=rgb(colour))
        draw.polygon(
            [(x, y - h), (x + 0.15 * w, y - 1.15 * h), (x + 1.05 * w, y - 1.15 * h), (x + w, y - h)],
            fill=rgb(colour * 1.25),
        )
    return picture


def _facade(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> Image.Image:
    picture = Image.new("RGB", size)
    draw = ImageDraw.Draw(picture)
    _building(rng, draw, (-0.1 * size[0], -0.1 * size[1], 1.1 * size[0], 1.1 * size[1]))
    if rng.random() < 0.6:
        line = int(np.clip(horizon * 1.3, 2, size[1] - 2))
        picture.paste(_ground(rng, (size[0], size[1] - line), _colour(rng, 0.25, 0.7, 0.1)), (0, line))
    return picture


def _foliage(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> Image.Image:
    width, height = size
    green = np.array([rng.uniform(0.1, 0.4), rng.uniform(0.25, 0.5), rng.uniform(0.05, 0.25)])
    picture = _gradient(size, green * rng.uniform(0.3, 1.0), green)
    draw = ImageDraw.Draw(picture)
    count = 260
    x, y = rng.uniform(0, width, count), rng.uniform(0, height, count)
    reach = rng.uniform(0.01, 0.06, (count, 2)) * width
    shade = np.clip(green * rng.uniform(0.3, 1.7, (count, 1)) * 255, 0, 255).astype(int)
    for i in range(count):
        box = (x[i] - reach[i, 0], y[i] - reach[i, 1], x[i] + reach[i, 0], y[i] + reach[i, 1])
        draw.ellipse(box, fill=tuple(shade[i].tolist()))
    if rng.random() < 0.5:
        line = int(np.clip(horizon * 1.4, 2, height - 2))
        picture.paste(_ground(rng, (width, height - line), green * 1.2), (0, line))
    return picture


def _blocks(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> Image.Image:
    """Cells around random points (a Voronoi diagram), each of one colour."""
    width, height = size
    count = int(rng.integers(12, 60))
    points = rng.random((count, 2)) * [96, 96 * height / width]
    rows = max(1, round(96 * height / width))
    grid = (np.arange(96)[None, :, None] - points[:, 0]) ** 2 + (np.arange(rows)[:, None, None] - points[:, 1]) ** 2
    colours = np.stack([_colour(rng, saturation=0.35) for _ in range(count)])
    cells = (colours[grid.argmin(axis=2)] * 255).astype(np.uint8)
    return Image.fromarray(cells).resize(
        size, Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.NEAREST
    )


def _noise(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> Image.Image:
    small = (max(2, size[0] // 2), max(2, size[1] // 2))
    layers = np.stack([fractal(rng, small, float(rng.uniform(0.5, 3)), 1.6) for _ in range(2)], axis=-1)
    mix = rng.normal(0, 0.12, (2, 3)).astype(np.float32)
    values = (layers @ mix + _colour(rng).astype(np.float32)) * 255
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def _add_clutter(rng: np.random.Generator, picture: Image.Image, horizon: float) -> None:
    """Boxes, discs, beams, and strips of lettering."""
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 14))):
        kind = rng.random()
        w, h = np.exp(rng.uniform(np.log(0.02), np.log(0.3), 2)) * [width, height]
        x, y = rng.uniform(-0.05, 1.0) * width, horizon + rng.normal(0, 0.25) * height
        colour = cloth_colour(rng)
        if kind < 0.35:
            draw.rectangle((x, y, x + w, y + h), fill=rgb(colour))
            draw.rectangle((x + 0.7 * w, y, x + w, y + h), fill=rgb(colour * 0.75))
        elif kind < 0.55:
            draw.ellipse((x, y, x + w, y + h), fill=rgb(colour))
            draw.ellipse((x + 0.15 * w, y + 0.1 * h, x + 0.75 * w, y + 0.7 * h), fill=rgb(colour * 1.2))
        elif kind < 0.75:
            end = (x + rng.normal(0, 0.3) * width, y + rng.normal(0, 0.4) * height)
            draw.line((x, y, *end), fill=rgb(colour), width=int(rng.integers(1, max(3, width // 60))))
        elif kind < 0.9:
            _lettering(rng, picture, (int(x), int(y)), (max(6, int(w)), max(4, int(0.35 * h))))
        else:
            corners = np.stack([x + rng.normal(0, 0.5, 4) * w, y + rng.normal(0, 0.5, 4) * h], axis=1)
            draw.polygon([tuple(c) for c in corners.tolist()], fill=rgb(colour))


def _lettering(rng: np.random.Generator, picture: Image.Image, corner: tuple[int, int], size: tuple[int, int]) -> None:
    letters = int(rng.integers(3, 12))
    strokes = rng.random((5, 4 * letters)) < 0.55
    strokes[:, 3::4] = False
    ink, paper = rng.uniform(0, 255, (2, 3))
    values = np.where(np.pad(strokes, 1)[..., None], ink, paper).astype(np.uint8)
    picture.paste(Image.fromarray(values).resize(size, Image.Resampling.NEAREST), corner)


def _weathered(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """A fall of light over the whole background, and sometimes a texture, fine or cloudy."""
    start, end = rng.uniform(0.75, 1.15, 2)
    width, height = picture.size
    factor: np.ndarray = np.broadcast_to(np.linspace(start, end, width, dtype=np.float32), (height, width))
    kind = rng.random()
    if kind < 0.35:
        factor = factor + fractal(rng, picture.size, 1.0, 0.6) * np.float32(rng.uniform(0.0, 0.10))
    elif kind < 0.55:
        factor = factor + fractal(rng, picture.size, float(rng.uniform(1, 4))) * np.float32(rng.uniform(0.0, 0.10))
    elif kind < 0.70:
        factor = factor + fractal(rng, picture.size, 3.0, 1.6) * np.float32(rng.uniform(0.0, 0.14))
    return _multiply(picture, factor)
