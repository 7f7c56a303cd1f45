"""Grounds, backdrops, lights and clutter for the scene domain."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .camera import Camera
from .objects import ToyObject
from .palette import COLORS, rgb
from .render import Hits, Light, cast, shade
from .shapes import Array
from .solids import Hull, Solid, ball, box, cone, cylinder, hull, turned

PATTERNS = ("plain", "striped", "checkered")
LIGHTS = ("bright", "dim", "warm", "cool")
_TINTS = {
    "bright": (1.0, 1.0, 1.0),
    "dim": (0.82, 0.82, 0.82),
    "warm": (1.0, 0.94, 0.84),
    "cool": (0.86, 0.94, 1.0),
}


@dataclass(frozen=True, eq=False)
class Companion:
    """A second object in a scene, on the `side` ("left" or "right") seen from the camera."""

    toy: ToyObject
    side: str
    solids: tuple[Solid, ...]


@dataclass(frozen=True, eq=False)
class Scenery:
    """Everything in a scene but its main object and its camera. Colours are palette names."""

    floor: str
    floor_pattern: str
    wall: str
    wall_pattern: str
    mood: str
    light: Light
    companion: Companion | None
    clutter: tuple[Solid, ...]
    clutter_colors: tuple[str, ...]
    spacing: float
    heading: float

    def group(self, toy: ToyObject) -> Hull:
        """The hulls of the main object and its companion."""
        return hull([*toy.solids, *(self.companion.solids if self.companion else ())])


def compose(
    rng: np.random.Generator, toy: ToyObject, yaw: float, other: ToyObject | None
) -> Scenery:
    """Random scenery for an object seen from `yaw` degrees, with an optional second object."""
    colors = [color for color in COLORS if color != toy.color]
    floor, wall = (colors[k] for k in rng.choice(len(colors), 2, replace=False))
    mood = LIGHTS[rng.integers(len(LIGHTS))]
    ground = _ground(toy)
    clutter, clutter_colors = _clutter(rng, yaw, ground)
    return Scenery(
        floor=floor,
        floor_pattern=PATTERNS[rng.integers(len(PATTERNS))],
        wall=wall,
        wall_pattern=PATTERNS[rng.integers(len(PATTERNS))],
        mood=mood,
        light=_light(rng, yaw, mood),
        companion=None if other is None else _companion(rng, other, yaw, ground),
        clutter=clutter,
        clutter_colors=clutter_colors,
        spacing=float(rng.uniform(0.25, 0.6)),
        heading=float(rng.uniform(0, np.pi)),
    )


def _ground(toy: ToyObject) -> float:
    return float(toy.hull.bounds()[0][:, 2].min())


def _light(rng: np.random.Generator, yaw: float, mood: str) -> Light:
    azimuth = np.radians(yaw + rng.uniform(-70, 70))
    height = np.radians(rng.uniform(25, 75))
    towards = (
        float(np.sin(azimuth) * np.cos(height)),
        float(-np.cos(azimuth) * np.cos(height)),
        float(np.sin(height)),
    )
    direct = rng.uniform(0.25, 0.4)
    red, green, blue = _TINTS[mood]
    ambient = 1 - direct
    return Light(
        towards=towards,
        direct=(red * direct, green * direct, blue * direct),
        ambient=(red * ambient, green * ambient, blue * ambient),
    )


def _sideways(yaw: float, right: float, away: float) -> tuple[float, float]:
    """World x and y of a spot given to the camera's right and away from it."""
    a = np.radians(yaw)
    x = right * np.cos(a) - away * np.sin(a)
    y = right * np.sin(a) + away * np.cos(a)
    return float(x), float(y)


def _companion(rng: np.random.Generator, other: ToyObject, yaw: float, ground: float) -> Companion:
    side = ("left", "right")[rng.integers(2)]
    scale = float(rng.uniform(0.6, 0.85))
    # Half widths add up to at most 0.71 + 0.6, but far less in nearly all cases.
    x, y = _sideways(yaw, (-1 if side == "left" else 1) * rng.uniform(0.95, 1.1), 0.25)
    offset = np.array([x, y, ground - scale * _ground(other)], np.float32)
    turn = turned("z", yaw + rng.uniform(-40, 40) - 20)
    solids = tuple(solid.moved(scale, offset, turn) for solid in other.solids)
    return Companion(other, side, solids)


def _clutter(
    rng: np.random.Generator, yaw: float, ground: float
) -> tuple[tuple[Solid, ...], tuple[str, ...]]:
    solids, colors = [], []
    for _ in range(rng.integers(0, 6)):
        radius = float(rng.uniform(0.08, 0.26))
        x, y = _sideways(yaw, rng.uniform(-1.8, 1.8), rng.uniform(1.1, 2.6))
        center = (x, y, ground + radius)
        turn = turned("z", rng.uniform(0, 90))
        make = rng.integers(4)
        if make == 0:
            solids.append(ball(center, radius))
        elif make == 1:
            solids.append(box(center, (2 * radius, 2 * radius, 2 * radius), turn))
        elif make == 2:
            solids.append(cone(center, 2 * radius, radius, 0.02))
        else:
            solids.append(cylinder(center, 2 * radius, 0.7 * radius))
        colors.append(COLORS[rng.integers(len(COLORS))])
    return tuple(solids), tuple(colors)


def paint(toy: ToyObject, scenery: Scenery, camera: Camera, size: int) -> tuple[Array, Hits, Array]:
    """The scene's RGB (H, W, 3) in 0..1, its hits and the depth (H, W) with floor and wall.

    Solids count from the main object's through the companion's to the clutter's.
    """
    solids = list(toy.solids)
    albedo = [toy.palette[toy.solid_parts]]
    if scenery.companion is not None:
        other = scenery.companion.toy
        solids += scenery.companion.solids
        albedo.append(other.palette[other.solid_parts])
    solids += scenery.clutter
    albedo.extend(rgb(color)[None] for color in scenery.clutter_colors)
    hits = cast(solids, hull(solids), camera, size)
    groups = [toy.solids, *((solid,) for solid in scenery.clutter)]
    if scenery.companion is not None:
        groups.append(scenery.companion.solids)
    seen = hits.solid >= 0
    image = np.empty((size, size, 3), np.float32)
    empty = ~seen
    rays = hits.rays[empty]
    image[empty], background = _backdrop(groups, scenery, camera, rays, _ground(toy))
    depth = hits.depth.copy()
    depth[empty] = background
    colors = np.concatenate(albedo)[hits.solid[seen]]
    image[seen] = shade(colors, hits.normals[seen], hits.rays[seen], scenery.light)
    return image, hits, depth


# The wall stands this far behind the object, the floor ends there.
_WALL = 3.0


def _backdrop(
    groups: Sequence[Sequence[Solid]],
    scenery: Scenery,
    camera: Camera,
    rays: Array,
    ground: float,
) -> tuple[Array, Array]:
    """RGB (N, 3) and depth (N,) of the floor and the wall behind it along rays (N, 3)."""
    a = np.radians(camera.yaw)
    away = np.array([-np.sin(a), np.cos(a), 0], np.float32)
    to_wall = (_WALL - camera.eye @ away) / np.maximum(rays @ away, 1e-3)
    to_floor = (ground - camera.eye[2]) / np.minimum(rays[:, 2], -1e-6)
    on_floor = to_floor < to_wall
    depth = np.where(on_floor, to_floor, to_wall).astype(np.float32)
    points = camera.eye + depth[:, None] * rays
    lit = np.array(scenery.light.ambient) + 0.6 * np.array(scenery.light.direct)
    result = np.empty_like(rays)
    floor = points[on_floor]
    shadow = _shadow(groups, floor[:, :2], ground)
    tone = _pattern(floor[:, 0], floor[:, 1], scenery.floor_pattern, scenery) * shadow
    result[on_floor] = tone[:, None] * _muted(scenery.floor) * lit
    wall = points[~on_floor]
    across = wall @ np.array([np.cos(a), np.sin(a), 0], np.float32)
    height = wall[:, 2] - ground
    tone = _pattern(across, height, scenery.wall_pattern, scenery)
    tone = tone * (1 - 0.08 * np.clip(height, 0, 4))
    result[~on_floor] = tone[:, None] * _muted(scenery.wall) * lit
    return np.clip(result, 0, 1), depth


def _muted(color: str) -> Array:
    """The colour mixed with grey, so that surroundings do not outshine the object."""
    return 0.7 * rgb(color) + np.float32(0.3 * 0.5)


def _pattern(x: Array, y: Array, pattern: str, scenery: Scenery) -> Array:
    """Brightness (N,) of a pattern at plane coordinates (N,)."""
    if pattern == "plain":
        return np.ones_like(x)
    cosine, sine = np.cos(scenery.heading), np.sin(scenery.heading)
    first = np.floor((cosine * x + sine * y) / scenery.spacing)
    if pattern == "checkered":
        first = first + np.floor((cosine * y - sine * x) / scenery.spacing)
    return np.where(first % 2 == 0, 1, 0.72).astype(np.float32)


def _shadow(groups: Sequence[Sequence[Solid]], points: Array, ground: float) -> Array:
    """Soft darkening (N,) of floor points (N, 2) under whatever of each group is low."""
    result = np.zeros(len(points), np.float32)
    for solids in groups:
        low, high = hull(solids).bounds()
        near = low[:, 2] < ground + 0.4
        bottom, top = low[near, :2].min(axis=0), high[near, :2].max(axis=0)
        away = np.square((points - (bottom + top) / 2) / ((top - bottom) / 2 + 0.08))
        # Compare before the exponential: it is dear and nearly all points are far from everything.
        squared = away[:, 0] + away[:, 1]
        close = squared < 6
        result[close] = np.maximum(result[close], 0.5 * np.exp(-0.8 * squared[close]))
    return 1 - result
