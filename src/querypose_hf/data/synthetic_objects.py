"""Things that are not people: animals, trees, bottles and poles to distract, and what stands in front of people."""

import numpy as np
from PIL import Image, ImageDraw

from .synthetic_colours import cloth_colour, rgb
from .synthetic_surfaces import CHECKS, MOTTLED, PLAIN, PROFILE, STRIPES_AROUND, Materials, Solids, noise_tile


_SIDEWAYS = np.array([1.0, 0.0, 0.2])


def build_object(rng: np.random.Generator, foot: tuple[float, float], size: float) -> tuple[Solids, Materials]:
    """A distractor of about `size` pixels that stands on `foot`: an animal, tree, bottle, pole, ball or lamp."""
    base = np.array([*foot, 0.0])
    kind = rng.choice(["animal", "tree", "bottle", "pole", "ball", "lamp"], p=[0.3, 0.2, 0.15, 0.15, 0.1, 0.1])
    solids, materials = Solids(size), Materials()
    {"animal": _animal, "tree": _tree, "bottle": _bottle, "pole": _pole, "ball": _ball, "lamp": _lamp}[str(kind)](
        rng, solids, materials, base, size
    )
    return solids, materials


def _even(radius: float) -> np.ndarray:
    return np.full(PROFILE, radius)


def _animal(rng: np.random.Generator, solids: Solids, materials: Materials, base: np.ndarray, size: float) -> None:
    """Four legs, a barrel, a neck and a head with a snout: what must not be taken for a person."""
    colour = np.array(
        [[0.35, 0.22, 0.12], [0.06, 0.05, 0.05], [0.85, 0.83, 0.80], [0.6, 0.48, 0.32], [0.5, 0.5, 0.5]]
    )[rng.integers(5)]
    fur = materials.add(
        colour, colour * rng.uniform(0.3, 1.4), MOTTLED if rng.random() < 0.6 else PLAIN, 1.5, 0.2, 0.0
    )
    dark = materials.add(colour * 0.35)
    turn = rng.uniform(-1.0, 1.0) + (np.pi if rng.random() < 0.5 else 0.0)
    forward = np.array([np.cos(turn), 0.0, np.sin(turn)])
    sideways = np.array([-np.sin(turn), 0.0, np.cos(turn)])
    legs = rng.uniform(0.25, 0.5) * size
    length = rng.uniform(0.45, 0.7) * size
    girth = rng.uniform(0.11, 0.17) * size
    middle = base + np.array([0, -legs - 0.6 * girth, 0])
    rump, chest = middle - 0.5 * length * forward, middle + 0.5 * length * forward
    barrel = np.interp(np.linspace(0, 1, PROFILE), [0, 0.5, 1], [girth, 0.92 * girth, 1.08 * girth])
    solids.tube(rump, chest, barrel, fur, sideways, 1.1, (0.8, 0.8))
    for end in (rump, chest):
        for sign in (-1, 1):
            hip = end + sign * 0.5 * girth * sideways
            foot = hip + np.array([0, legs + 0.6 * girth, 0]) + forward * rng.normal(0, 0.12) * legs
            profile = np.linspace(0.42 * girth, 0.2 * girth, PROFILE)
            hoof = np.where(np.linspace(0, 1, PROFILE) > 0.93, dark, fur)
            solids.tube(hip, foot, profile, hoof, sideways)
    rise = rng.uniform(0.2, 0.9)
    head = chest + (forward * 0.30 + np.array([0, -rise * 0.35, 0])) * size
    solids.tube(chest, head, np.linspace(0.75 * girth, 0.42 * girth, PROFILE), fur, sideways)
    snout = head + (forward * 0.16 + np.array([0, rng.uniform(-0.02, 0.08), 0])) * size
    solids.tube(head, snout, np.linspace(0.5 * girth, 0.28 * girth, PROFILE), fur, sideways)
    for sign in (-1, 1):
        ear = head + sign * 0.35 * girth * sideways
        solids.tube(
            ear, ear + np.array([0, -0.75 * girth, 0]), np.linspace(0.2 * girth, 0.06 * girth, PROFILE), dark, sideways
        )
        eye = head + forward * 0.05 * size + sign * 0.42 * girth * sideways + np.array([0, -0.12 * girth, 0])
        solids.ellipsoid(eye, np.eye(3) * 0.09 * girth, dark)
    tail = rump + (-forward * 0.16 + np.array([0, rng.uniform(-0.15, 0.2), 0])) * size
    solids.tube(rump, tail, np.linspace(0.16 * girth, 0.08 * girth, PROFILE), fur, sideways)


def _tree(rng: np.random.Generator, solids: Solids, materials: Materials, base: np.ndarray, size: float) -> None:
    bark = materials.add(
        np.array([0.30, 0.22, 0.15]) * rng.uniform(0.6, 1.3), np.array([0.15, 0.1, 0.08]), MOTTLED, 3, 0.2
    )
    green = np.array([rng.uniform(0.08, 0.35), rng.uniform(0.25, 0.5), rng.uniform(0.05, 0.2)])
    leaves = materials.add(green, green * 0.5, MOTTLED, 4, 0.7)
    top = base + np.array([0, -size, 0])
    solids.tube(base, top, np.linspace(0.05, 0.03, PROFILE) * size, bark, _SIDEWAYS)
    for _ in range(int(rng.integers(3, 7))):
        centre = top + rng.normal(0, 0.16, 3) * size * [1, 0.7, 0.5]
        solids.ellipsoid(centre, np.diag(rng.uniform(0.12, 0.3, 3) * size), leaves)


def _bottle(rng: np.random.Generator, solids: Solids, materials: Materials, base: np.ndarray, size: float) -> None:
    body = materials.add(cloth_colour(rng), gloss=0.6)
    label = materials.add(cloth_colour(rng), cloth_colour(rng), STRIPES_AROUND, 14)
    position = np.linspace(0, 1, PROFILE)
    size = 0.5 * size
    profile = np.interp(position, [0, 0.25, 0.42, 1], [0.05, 0.06, 0.16, 0.16]) * size
    material = np.where((position > 0.55) & (position < 0.85), label, body)
    solids.tube(base + np.array([0, -size, 0]), base, profile, material, _SIDEWAYS, 1.0, (0.2, 0.2))


def _pole(rng: np.random.Generator, solids: Solids, materials: Materials, base: np.ndarray, size: float) -> None:
    paint = materials.add(cloth_colour(rng), cloth_colour(rng), int(rng.choice([PLAIN, STRIPES_AROUND])), 8, 0, 0.2)
    lean = np.array([rng.normal(0, 0.03), -1.0, 0.0])
    solids.tube(base, base + lean * size * 2.2, _even(rng.uniform(0.012, 0.05) * size), paint, _SIDEWAYS)


def _ball(rng: np.random.Generator, solids: Solids, materials: Materials, base: np.ndarray, size: float) -> None:
    paint = materials.add(cloth_colour(rng), cloth_colour(rng), int(rng.choice([PLAIN, CHECKS])), 8, 0, 0.4)
    radius = rng.uniform(0.08, 0.25) * size
    solids.ellipsoid(base + np.array([0, -radius, 0]), np.eye(3) * radius, paint)


def _lamp(rng: np.random.Generator, solids: Solids, materials: Materials, base: np.ndarray, size: float) -> None:
    """A shade on a stand: round on top of long, as a head on a body is."""
    stand = materials.add(cloth_colour(rng), gloss=0.3)
    shade = materials.add(cloth_colour(rng), gloss=0.1)
    top = base + np.array([0, -size, 0])
    solids.tube(
        base, top, np.interp(np.linspace(0, 1, PROFILE), [0, 0.05, 1], [0.12, 0.025, 0.02]) * size, stand, _SIDEWAYS
    )
    if rng.random() < 0.5:
        solids.ellipsoid(top, np.diag(rng.uniform(0.07, 0.13, 3) * size), shade)
    else:
        solids.tube(
            top,
            top + np.array([0, 0.2 * size, 0]),
            np.linspace(0.06, 0.13, PROFILE) * size,
            shade,
            _SIDEWAYS,
            1.0,
            (0.1, 0.1),
        )


def draw_obstacle(
    rng: np.random.Generator, size: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[Image.Image, tuple[int, int]] | None:
    """Something flat-sided or leafy that fills about `box` (left, top, right, bottom) and may hide people behind it.

    Returns:
        `tuple`: an RGBA picture of it and the position of its upper left corner in the scene, or `None` where the box
        lies outside a scene of this `size` (width, height).
    """
    left, top = max(int(box[0]), 0), max(int(box[1]), 0)
    right, bottom = min(round(box[2]), size[0]), min(round(box[3]), size[1])
    width, height = right - left, bottom - top
    if width < 2 or height < 2:
        return None
    kind = rng.choice(["furniture", "plant", "panel"], p=[0.55, 0.2, 0.25])
    picture = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(picture)
    colour = cloth_colour(rng)
    if kind == "furniture":
        # a front face, a lighter top and drawers or boards
        slant = 0.12 * height * rng.uniform(0.3, 1.5)
        inset = 0.1 * width * rng.uniform(0, 1)
        draw.rectangle((0, slant, width, height), fill=rgb(colour))
        draw.polygon([(inset, 0), (width - inset, 0), (width, slant), (0, slant)], fill=rgb(colour * 0.6 + 0.38))
        for i in range(int(rng.integers(0, 4))):
            y = slant + (height - slant) * (i + 1) / 4
            draw.line((0, y, width, y), fill=rgb(colour * 0.55), width=max(1, height // 60))
        for x in rng.uniform(0, width, int(rng.integers(0, 3))):
            draw.line((x, slant, x, height), fill=rgb(colour * 0.55), width=max(1, width // 80))
    elif kind == "plant":
        _draw_leaves(rng, draw, picture.size)
    else:
        draw.rectangle((0, 0, width, height), fill=rgb(colour))
        for _ in range(int(rng.integers(1, 7))):
            x0, y0 = rng.uniform(0, width), rng.uniform(0, height)
            draw.rectangle(
                (x0, y0, x0 + rng.uniform(0.1, 0.5) * width, y0 + rng.uniform(0.05, 0.3) * height),
                fill=rgb(cloth_colour(rng)),
            )
    return _textured(rng, picture), (left, top)


def _draw_leaves(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    width, height = size
    green = np.array([rng.uniform(0.08, 0.35), rng.uniform(0.28, 0.55), rng.uniform(0.05, 0.22)])
    count = 70
    x, y = rng.uniform(0, width, count), height * (1 - rng.beta(1.2, 1.5, count))
    angle, reach = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.08, 0.22, count) * min(width, height)
    shades = np.clip(green * rng.uniform(0.4, 1.4, (count, 1)), 0, 1)
    for i in range(count):
        dx, dy = np.cos(angle[i]) * reach[i], np.sin(angle[i]) * reach[i]
        tips = [(x[i] + dx, y[i] + dy), (x[i] - 0.3 * dy, y[i] + 0.3 * dx),
                (x[i] - dx, y[i] - dy), (x[i] + 0.3 * dy, y[i] - 0.3 * dx)]  # fmt: skip
        draw.polygon(tips, fill=rgb(shades[i]))


def _textured(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Grain and a fall of light over a flat drawing."""
    values = np.asarray(picture).copy()
    height, width = values.shape[:2]
    rows, columns = np.arange(height) + rng.integers(512), np.arange(width) + rng.integers(512)
    grain = noise_tile()[np.ix_(rows & 511, columns & 511)] * rng.uniform(0.0, 0.07)
    start, end = rng.uniform(0.7, 1.15, 2).tolist()
    fall = np.linspace(start, end, width)
    values[..., :3] = np.clip(values[..., :3] * ((1 + grain) * fall)[..., None], 0, 255)
    return Image.fromarray(values)
