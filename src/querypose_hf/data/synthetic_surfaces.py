"""Draws rounded solids: tapered tubes of elliptic cross-section and ellipsoids, with a depth buffer and shading.

Orthographic view, camera coordinates in pixels: x right, y down, z away from the camera. Each solid is solved for its
nearest visible point per pixel in closed form, so there are no meshes. Drawing keeps only depth and the solid's own
surface coordinates; colours are worked out afterwards, once per visible pixel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image


#: Samples along a tube of its radius and material.
PROFILE = 160

#: A pixel and the eight around it: steps in rows and columns.
NEIGHBOURHOOD = np.array([(row, column) for row in (0, -1, 1) for column in (0, -1, 1)])

# patterns of a material
PLAIN, STRIPES_AROUND, STRIPES_ALONG, CHECKS, DOTS, LOGO, OPEN_FRONT, MOTTLED, BLOCKS = range(9)


@lru_cache(maxsize=8)
def noise_tile(exponent: float = 1.1) -> np.ndarray:
    """A periodic 512 x 512 tile of 1/f**exponent noise, mean 0 and deviation 1, the same in every process."""
    rng = np.random.default_rng(29)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None, :])
    frequency[0, 0] = np.inf
    tile = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((512, 512))) / frequency**exponent, s=(512, 512))
    return (tile / tile.std()).astype(np.float32)


@lru_cache(maxsize=1)
def _fold_tile() -> np.ndarray:
    """How folds in cloth tilt towards the light: a slope of smooth noise, without its longest waves."""
    smooth = noise_tile(2.3)
    slope = smooth - np.roll(smooth, (7, 4), axis=(0, 1))
    return np.clip(slope / slope.std(), -2.0, 2.0)


@dataclass
class Materials:
    """Surface looks; every list has one entry per material."""

    colour: list[Sequence[float]] = field(default_factory=list)
    second: list[Sequence[float]] = field(default_factory=list)
    pattern: list[int] = field(default_factory=list)
    frequency: list[float] = field(default_factory=list)
    folds: list[float] = field(default_factory=list)
    gloss: list[float] = field(default_factory=list)

    def add(self, colour, second=None, pattern=PLAIN, frequency=20.0, folds=0.0, gloss=0.05) -> int:
        """Adds a material and returns its number. Colours are RGB in 0..1, `frequency` is per unit of length."""
        self.colour.append(colour)
        self.second.append(colour if second is None else second)
        self.pattern.append(pattern)
        self.frequency.append(frequency)
        self.folds.append(folds)
        self.gloss.append(gloss)
        return len(self.colour) - 1


@dataclass
class Light:
    """One light from far away and light from all around, in camera coordinates."""

    direction: np.ndarray
    colour: np.ndarray
    ambient: np.ndarray
    from_below: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Light":
        direction = np.array([rng.normal(0, 0.7), -rng.uniform(0.2, 1.2), -rng.uniform(0.15, 1.1)])
        strength = rng.uniform(0.35, 0.95)
        warmth = rng.normal(0, 0.06)
        tint = np.array([1 + warmth, 1.0, 1 - warmth])
        return cls(
            direction=direction / np.linalg.norm(direction),
            colour=strength * tint,
            ambient=(1.06 - 0.62 * strength) * tint[::-1] * rng.uniform(0.75, 1.0),
            from_below=float(rng.uniform(0.45, 0.85)),
        )


class Solids:
    """A list of tubes and ellipsoids to be drawn together.

    Args:
        unit (`float`): pixels per unit of length; texture coordinates count in units.
    """

    def __init__(self, unit: float):
        self.unit = float(unit)
        self._tubes: list[tuple] = []
        self._tube_numbers: list[int] = []
        self._ellipsoids: list[tuple] = []
        self._ellipsoid_numbers: list[int] = []
        #: Per solid: whether it is part of the body (or else an object that goes with it).
        self.is_body: list[bool] = []

    def __len__(self) -> int:
        return len(self.is_body)

    def tube(
        self,
        start: np.ndarray,
        end: np.ndarray,
        radius: np.ndarray,
        material: np.ndarray | int,
        across: np.ndarray,
        flatness: float = 1.0,
        roundness: tuple[float, float] = (1.0, 1.0),
        texture_start: float = 0.0,
        body: bool = True,
    ) -> int:
        """Adds a tube from `start` to `end` (3,) and returns its number.

        Args:
            radius (`np.ndarray` of shape (PROFILE,)): half width along `across`, from start to end.
            material (`np.ndarray` of shape (PROFILE,) or `int`): materials from start to end.
            across (`np.ndarray` of shape (3,)): direction of the width; made perpendicular to the tube.
            flatness (`float`): depth over width of the cross-section.
            roundness (`tuple`): how far the two ends bulge, as a fraction of the radius.
            texture_start (`float`): texture coordinate along the tube at its start, in units.
        """
        self._tubes.append((start, end, radius, material, across, flatness, roundness, texture_start))
        self._tube_numbers.append(len(self.is_body))
        self.is_body.append(body)
        return len(self.is_body) - 1

    def ellipsoid(self, centre: np.ndarray, axes: np.ndarray, material: int, cut=None, body: bool = True) -> int:
        """Adds an ellipsoid and returns its number.

        Args:
            axes (`np.ndarray` of shape (3, 3)): columns are its semi-axes.
            cut (`tuple[float, float, float, float]`, *optional*): keep only points with a x + b y + c z < d in
                coordinates of the semi-axes.
        """
        self._ellipsoids.append((centre, axes, material, cut))
        self._ellipsoid_numbers.append(len(self.is_body))
        self.is_body.append(body)
        return len(self.is_body) - 1

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of what would be drawn, a little generous."""
        low, high = [], []
        if self._tubes:
            ends = np.array([(tube[0][:2], tube[1][:2]) for tube in self._tubes])
            reach = np.array([tube[2].max() * max(1.0, *tube[6]) for tube in self._tubes])[:, None]
            low.append((ends.min(axis=1) - reach).min(axis=0))
            high.append((ends.max(axis=1) + reach).max(axis=0))
        if self._ellipsoids:
            centres = np.array([ellipsoid[0][:2] for ellipsoid in self._ellipsoids])
            reach = np.linalg.norm(np.array([ellipsoid[1] for ellipsoid in self._ellipsoids])[:, :2], axis=2)
            low.append((centres - reach).min(axis=0))
            high.append((centres + reach).max(axis=0))
        (left, top), (right, bottom) = np.min(low, axis=0), np.max(high, axis=0)
        return float(left) - 1, float(top) - 1, float(right) + 1, float(bottom) + 1

    def draw(self, window: tuple[int, int, int, int], zoom: float) -> "Drawing":
        """Draws the part inside a window (left, top, right, bottom in pixels), enlarged by `zoom`."""
        return Drawing(self, window, zoom)


class Drawing:
    """Solids drawn into a window: depth, and which solid is seen where.

    Attributes:
        depth (`np.ndarray` of shape (h, w)): z of the nearest surface in pixels of the picture; infinite where none.
        solid (`np.ndarray` of shape (h, w)): number of the solid seen, -1 for none.
    """

    def __init__(self, solids: Solids, window: tuple[int, int, int, int], zoom: float):
        left, top, right, bottom = window
        shape = (max(1, round((bottom - top) * zoom)), max(1, round((right - left) * zoom)))
        # the zoom that whole pixels allow, for each direction
        self.zoom = (shape[1] / (right - left), shape[0] / (bottom - top))
        self.window = window
        self.solids = solids
        self.depth = np.full(shape, np.inf, dtype=np.float32)
        self.solid = np.full(shape, -1, dtype=np.int16)
        # surface coordinates: along a tube, across it, and towards the camera
        self._along = np.zeros(shape, dtype=np.float32)
        self._across = np.zeros(shape, dtype=np.float32)
        self._outward = np.zeros(shape, dtype=np.float32)
        self._columns = ((np.arange(shape[1]) + 0.5) / self.zoom[0] + left).astype(np.float32)
        self._rows = ((np.arange(shape[0]) + 0.5) / self.zoom[1] + top).astype(np.float32)
        self._draw_tubes(solids)
        self._draw_ellipsoids(solids)

    def _region(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice] | None:
        height, width = self.depth.shape
        x0 = max(int((left - self.window[0]) * self.zoom[0]), 0)
        y0 = max(int((top - self.window[1]) * self.zoom[1]), 0)
        x1 = min(int((right - self.window[0]) * self.zoom[0]) + 1, width)
        y1 = min(int((bottom - self.window[1]) * self.zoom[1]) + 1, height)
        return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None

    def _draw_tubes(self, solids: Solids) -> None:
        if not solids._tubes:
            return
        start, end, radius, across = (np.stack([tube[i] for tube in solids._tubes]) for i in (0, 1, 2, 4))
        flatness = np.array([tube[5] for tube in solids._tubes])
        roundness = np.array([tube[6] for tube in solids._tubes])
        span = end - start
        length3 = np.maximum(np.linalg.norm(span, axis=1), 1e-6)
        axis = span / length3[:, None]
        side = across - (across * axis).sum(axis=1, keepdims=True) * axis
        side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-6)
        front = np.cross(axis, side)
        length = np.linalg.norm(span[:, :2], axis=1)
        # a tube that points at the camera has no direction in the picture; any will do
        along = np.where(length[:, None] > 1e-3, span[:, :2] / np.maximum(length, 1e-3)[:, None], [0.0, 1.0])
        length = np.maximum(length, 1e-3)
        normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
        side_n, front_n = (side[:, :2] * normal).sum(axis=1), (front[:, :2] * normal).sum(axis=1)
        side_e, front_e = (side[:, :2] * along).sum(axis=1), (front[:, :2] * along).sum(axis=1)
        # Cross-section: cos(angle) side + flatness sin(angle) front. Seen from the camera it is `spread` radii wide.
        spread = np.maximum(np.hypot(side_n, flatness * front_n), 1e-4)
        cosine, sine = side_n / spread, flatness * front_n / spread
        slope = cosine * side[:, 2] + sine * flatness * front[:, 2]
        bulge = flatness * cosine * front[:, 2] - sine * side[:, 2]
        sign = np.where(bulge > 0, -1.0, 1.0)
        foreshortening = np.abs(axis[:, 2])
        height = np.hypot(bulge, foreshortening * np.minimum(flatness, 1.0))
        flat_cap = np.hypot(side_e, flatness * front_e)
        in_plane = np.sqrt(np.maximum(1 - foreshortening**2, 0.0))
        cap = radius[:, [0, -1]] * np.hypot(
            flat_cap[:, None], roundness * (spread * np.maximum(in_plane, 0.05))[:, None]
        )
        cap = np.maximum(cap, 0.35)
        self._tube_frame = (side, front, axis, cosine, sine, sign, flatness, length3, radius)

        reach = np.maximum(radius.max(axis=1) * spread, cap.max(axis=1)) + 1
        left, top = (np.minimum(start[:, :2], end[:, :2]) - reach[:, None]).T
        right, bottom = (np.maximum(start[:, :2], end[:, :2]) + reach[:, None]).T
        radius32 = radius.astype(np.float32)
        for i in range(len(start)):
            region = self._region(left[i], top[i], right[i], bottom[i])
            if region is None:
                continue
            y = self._rows[region[0]] - np.float32(start[i, 1])
            x = self._columns[region[1]] - np.float32(start[i, 0])
            ex, ey = float(along[i, 0]), float(along[i, 1])
            forward = (y * ey)[:, None] + x * ex
            inside = np.clip(forward, 0.0, float(length[i]))
            beyond = forward - inside
            position = inside * float(1.0 / length[i])
            r = radius32[i].take((position * (PROFILE - 1)).astype(np.intp))
            t = ((y * ex)[:, None] - x * ey) / (r * float(spread[i]))
            beyond *= np.where(beyond < 0, np.float32(1 / cap[i, 0]), np.float32(1 / cap[i, 1]))
            rest = 1.0 - t * t - beyond * beyond
            outward = np.sqrt(np.maximum(rest, 0.0))
            z = r * (t * float(slope[i]) - outward * float(height[i]))
            z += position * float(span[i, 2]) + float(start[i, 2])
            seen = (rest > 0) & (z < self.depth[region])
            # beyond the ends, `position` carries the bulge: below 0 or above 1
            position += beyond
            self._put(region, seen, z, solids._tube_numbers[i], position, t, outward)

    def _draw_ellipsoids(self, solids: Solids) -> None:
        if not solids._ellipsoids:
            return
        centres = np.array([ellipsoid[0] for ellipsoid in solids._ellipsoids], dtype=np.float64)
        axes = np.array([ellipsoid[1] for ellipsoid in solids._ellipsoids], dtype=np.float64)
        self._inverse = np.linalg.inv(axes)
        self._centres = centres
        shadow = axes[:, :2] @ axes[:, :2].transpose(0, 2, 1)
        inverse_shadow = np.linalg.inv(shadow)
        # surface depth = centre + slope . (x, y) - thickness * sqrt(1 - (x, y) S^-1 (x, y))
        slope = np.einsum("nj,njk->nk", np.einsum("nk,njk->nj", axes[:, 2], axes[:, :2]), inverse_shadow)
        thickness = np.sqrt(np.maximum((axes[:, 2] ** 2).sum(axis=1) - np.einsum(
            "nj,njk,nk->n", slope, shadow, slope), 1e-12))  # fmt: skip
        reach = np.sqrt(np.stack([shadow[:, 0, 0], shadow[:, 1, 1]], axis=1))
        for i in range(len(centres)):
            region = self._region(*(centres[i, :2] - reach[i]), *(centres[i, :2] + reach[i]))
            if region is None:
                continue
            y = (self._rows[region[0]] - np.float32(centres[i, 1]))[:, None]
            x = self._columns[region[1]] - np.float32(centres[i, 0])
            (a, b), (_, d) = inverse_shadow[i].tolist()
            rest = 1.0 - (x * x * a + (y * (2 * b)) * x + y * y * d)
            outward = np.sqrt(np.maximum(rest, 0.0))
            height = x * float(slope[i, 0]) + y * float(slope[i, 1]) - outward * float(thickness[i])
            z = height + np.float32(centres[i, 2])
            seen = (rest > 0) & (z < self.depth[region])
            cut = solids._ellipsoids[i][3]
            if cut is not None:
                gx, gy, gz = (np.asarray(cut[:3]) @ self._inverse[i]).tolist()
                seen &= x * gx + y * gy + height * gz < cut[3]
            self._put(region, seen, z, solids._ellipsoid_numbers[i], None, None, None)

    def _put(self, region, seen, z, number, along, across, outward) -> None:
        np.copyto(self.depth[region], z, where=seen)
        np.copyto(self.solid[region], number, where=seen)
        if along is not None:
            np.copyto(self._along[region], along, where=seen)
            np.copyto(self._across[region], across, where=seen)
            np.copyto(self._outward[region], outward, where=seen)

    def is_seen(self, points: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
        """Whether points (n, 3) lie at most `tolerance` (n,) behind the drawn surface, or up to a pixel beside it."""
        columns = np.floor((points[:, 0] - self.window[0]) * self.zoom[0]).astype(int)
        rows = np.floor((points[:, 1] - self.window[1]) * self.zoom[1]).astype(int)
        rows, columns = rows + NEIGHBOURHOOD[:, :1], columns + NEIGHBOURHOOD[:, 1:]
        height, width = self.depth.shape
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
        is_body = np.append(self.solids.is_body, False)[self.solid[rows, columns]]
        near = self.depth[rows, columns] >= points[:, 2] - tolerance
        return (inside & is_body & near).any(axis=0)

    def shade(
        self,
        materials: Materials,
        light: Light,
        texture_offset: tuple[int, int],
        paint: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """Colours of what is seen: (h, w, 4) uint8 RGBA, transparent where nothing is.

        Args:
            texture_offset (`tuple[int, int]`): where in the noise tile this drawing's textures start.
            paint (callable, *optional*): called as `paint(number, points, colour)` for every ellipsoid seen, with its
                visible points (k, 3) and their colours (k, 3), to be changed in place.
        """
        picture = np.zeros((*self.depth.shape, 4), dtype=np.uint8)
        where = np.flatnonzero(self.solid >= 0)
        if len(where) == 0:
            return picture
        solid = self.solid.ravel()[where]
        count = len(where)
        normal = np.empty((count, 3), dtype=np.float32)
        # texture coordinates in units: along and around; and how far a point faces the body's front
        along, around, front_ness = (np.zeros(count, dtype=np.float32) for _ in range(3))
        material = np.zeros(count, dtype=np.intp)
        if self.solids._tubes:
            self._tube_surface(where, solid, normal, along, around, front_ness, material)
        ellipsoid_parts = self._ellipsoid_surface(where, solid, normal, along, around, material)

        colour = np.array(materials.colour, dtype=np.float32)[material]
        self._add_patterns(materials, material, colour, along, around, front_ness)
        if paint is not None:
            for number, members, points in ellipsoid_parts:
                part = colour[members]
                paint(number, points, part)
                colour[members] = part

        folds = np.array(materials.folds, dtype=np.float32)[material]
        rows = (along * 620).astype(np.int32) + texture_offset[0]
        columns = (around * 900).astype(np.int32) + texture_offset[1]
        crease = _fold_tile()[rows & 511, columns & 511]
        lambert = np.maximum(normal @ light.direction.astype(np.float32) + crease * folds, 0.0)
        hemisphere = light.from_below + (1 - light.from_below) * (0.5 - 0.5 * normal[:, 1])
        occlusion = self._occlusion(where)
        brightness = np.multiply.outer(lambert * (0.35 + 0.65 * occlusion), light.colour.astype(np.float32))
        brightness += np.multiply.outer(hemisphere * occlusion, light.ambient.astype(np.float32))
        colour *= brightness
        gloss = np.array(materials.gloss, dtype=np.float32)
        if gloss.max() > 0:
            half = light.direction + np.array([0.0, 0.0, -1.0])
            half /= np.linalg.norm(half)
            shine = np.maximum(normal @ half.astype(np.float32), 0.0)
            shine *= shine
            shine *= shine
            shine *= shine
            colour += (shine * shine * gloss[material])[:, None]
        flat = picture.reshape(-1, 4)
        np.clip(colour, 0.0, 1.0, out=colour)
        flat[where, :3] = colour * 255
        flat[where, 3] = 255
        return picture

    def _tube_surface(self, where, solid, normal, along, around, front_ness, material) -> None:
        number_to_tube = np.full(len(self.solids), -1)
        number_to_tube[self.solids._tube_numbers] = np.arange(len(self.solids._tubes))
        tube = number_to_tube[solid]
        members = np.flatnonzero(tube >= 0)
        tube, pixels = tube[members], where[members]
        side, front, axis, cosine, sine, sign, flatness, length3, radius = self._tube_frame
        position, t, s = (a.ravel()[pixels] for a in (self._along, self._across, self._outward))
        inside = np.clip(position, 0.0, 1.0)
        # One matrix per tube takes (t, s, bulge) to the normal: N = cos side + sin / flatness front + bulge axis,
        # with cos = cosine t - sign sine s and sin = sine t + sign cosine s.
        squash = (1.0 / flatness)[:, None]
        by_t = cosine[:, None] * side + squash * sine[:, None] * front
        by_s = -(sign * sine)[:, None] * side + squash * (sign * cosine)[:, None] * front
        n = by_t.astype(np.float32)[tube] * t[:, None]
        n += by_s.astype(np.float32)[tube] * s[:, None]
        n += axis.astype(np.float32)[tube] * (position - inside)[:, None]
        n /= np.sqrt(np.einsum("ij,ij->i", n, n) + 1e-9)[:, None]
        normal[members] = n
        sin_angle = sine.astype(np.float32)[tube] * t + (sign * cosine).astype(np.float32)[tube] * s
        cos_angle = cosine.astype(np.float32)[tube] * t - (sign * sine).astype(np.float32)[tube] * s
        unit = self.solids.unit
        begin = np.array([item[7] for item in self.solids._tubes], dtype=np.float32)
        along[members] = begin[tube] + inside * (length3 / unit).astype(np.float32)[tube]
        # the angle from the front, times the mean radius: cloth is measured along the surface
        around[members] = np.arctan2(cos_angle, sin_angle) * (radius.mean(axis=1) / unit).astype(np.float32)[tube]
        front_ness[members] = sin_angle
        profiles = np.array(
            [np.broadcast_to(np.asarray(item[3], dtype=np.intp), PROFILE) for item in self.solids._tubes]
        )
        material[members] = profiles[tube, (inside * (PROFILE - 1)).astype(np.intp)]

    def _ellipsoid_surface(self, where, solid, normal, along, around, material) -> list:
        parts = []
        width = self.depth.shape[1]
        depth = self.depth.ravel()
        order = np.argsort(solid, kind="stable") if self.solids._ellipsoids else None
        for i, number in enumerate(self.solids._ellipsoid_numbers):
            first, last = np.searchsorted(solid, (number, number + 1), sorter=order)
            if first == last:
                continue
            members = order[first:last]  # type: ignore[index]
            pixels = where[members]
            points = np.stack([self._columns[pixels % width], self._rows[pixels // width], depth[pixels]], axis=1)
            local = (points - self._centres[i].astype(np.float32)) @ self._inverse[i].T.astype(np.float32)
            n = local @ self._inverse[i].astype(np.float32)
            n /= np.sqrt(np.einsum("ij,ij->i", n, n) + 1e-12)[:, None]
            normal[members] = n
            size = float(np.cbrt(abs(np.linalg.det(self.solids._ellipsoids[i][1])))) / self.solids.unit
            along[members], around[members] = local[:, 1] * size, (local[:, 0] + 0.6 * local[:, 2]) * size
            material[members] = self.solids._ellipsoids[i][2]
            parts.append((number, members, points))
        return parts

    def _add_patterns(self, materials: Materials, material, colour, along, around, front_ness) -> None:
        tile = noise_tile()
        for number, pattern in enumerate(materials.pattern):
            if pattern == PLAIN:
                continue
            members = np.flatnonzero(material == number)
            if len(members) == 0:
                continue
            frequency = materials.frequency[number]
            p, q = around[members] * frequency, along[members] * frequency
            if pattern == STRIPES_AROUND:
                chosen = q % 1.0 < 0.45
            elif pattern == STRIPES_ALONG:
                chosen = p % 1.0 < 0.3
            elif pattern == CHECKS:
                chosen = (q % 1.0 < 0.5) ^ (p % 1.0 < 0.5)
            elif pattern == DOTS:
                chosen = (q % 1.0 - 0.5) ** 2 + (p % 1.0 - 0.5) ** 2 < 0.07
            elif pattern == LOGO:
                # letters: a coarse grid of on and off, on the chest
                u, v = around[members], along[members]
                letters = tile[(v * 140).astype(int) & 511, (u * 110 + 7 * frequency).astype(int) & 511] > 0.1
                chosen = letters & (np.abs(u) < 0.055) & (v > 0.08) & (v < 0.14) & (front_ness[members] > 0.2)
            elif pattern == OPEN_FRONT:
                # a jacket: a gap at the front that widens towards the neck
                gap = 0.012 + 0.09 * np.maximum(0.2 - along[members], 0.0)
                chosen = (np.abs(around[members]) < gap) & (front_ness[members] > 0.3) & (along[members] < 0.6)
            elif pattern == MOTTLED:
                chosen = tile[(q * 16).astype(int) & 511, (p * 16).astype(int) & 511] > 0.2
            else:
                chosen = q > 2.6
            colour[members[chosen]] = np.array(materials.second[number], dtype=np.float32)

    def _occlusion(self, where: np.ndarray) -> np.ndarray:
        """Darkens what lies behind its surroundings: creases, and cloth under an arm."""
        height, width = self.depth.shape
        depth = self.depth.ravel()
        farthest = float(depth[where].max())
        # Beside the body nothing darkens it: an empty pixel counts as far away.
        image = Image.fromarray(np.minimum(self.depth, np.float32(farthest)))
        step = max(2, round(0.02 * self.solids.unit * self.zoom[0]))
        small = image.resize((max(1, width // step), max(1, height // step)), Image.Resampling.BOX)
        blurred = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)).ravel()
        behind = (depth[where] - blurred[where]) / (0.045 * self.solids.unit)
        return 1.0 - 0.55 * np.clip(behind, 0.0, 1.0)
