"""Buildings and vehicles."""

from math import cos, pi, sin

from .solids import TO_FRONT, TO_SIDE, ball, box, cone, cylinder, rod, slab, turned
from .variation import Family, Parts, Variation


def _rocket(v: Variation) -> Parts:
    height = v.between(0.65, 1.4)
    parts: Parts = {
        "body": [cylinder((0, 0, height / 2), height, 0.26)],
        "nose": [cone((0, 0, height + 0.2), 0.42, 0.27, 0.03)],
        "fins": [],
    }
    for k in range(v.count):
        turn = turned("z", 360 * k / v.count - 60)
        fin = slab([(0.2, 0.02), (0.52, -0.16), (0.52, 0.08), (0.2, 0.42)], 0.11, turn=turn)
        parts["fins"].append(fin)
    if v.has("window"):
        parts["window"] = [cylinder((0.06, -0.22, 0.68 * height), 0.16, 0.14, TO_FRONT)]
    if v.has("flame"):
        parts["flame"] = [cone((0, 0, -0.13), 0.28, 0.05, 0.18)]
    return parts


def _house(v: Variation) -> Parts:
    height = v.between(0.55, 1.25)
    width = v.freely(0, 0.9, 1.1)
    peak = v.freely(1, 0.24, 0.38)
    eaves = width / 2 + 0.08
    parts: Parts = {
        "walls": [box((0, 0, height / 2), (width, 0.85, height))],
        "roof": [slab([(-eaves, 0), (eaves, 0), (0, peak)], 0.95, (0, 0, height - 0.01))],
        "door": [box((-0.18, -0.42, 0.2), (0.24, 0.12, 0.4))],
    }
    if v.has("window"):
        parts["window"] = [box((0.22, -0.42, 0.5 * height), (0.22, 0.1, 0.2))]
    if v.has("chimney"):
        parts["chimney"] = [box((0.26, -0.1, height + 0.28), (0.18, 0.18, 0.5))]
    return parts


def _castle(v: Variation) -> Parts:
    height = v.between(0.45, 1.05)
    radius = v.freely(0, 0.15, 0.19)
    spots = [(x, y) for x in (-0.46, 0.46) for y in (-0.46, 0.46)]
    parts: Parts = {
        "walls": [
            box((0, 0, 0.34 * height), (0.92, 0.92, 0.68 * height)),
            *(cylinder((x, y, height / 2), height, radius) for x, y in spots),
        ],
        "roofs": [cone((x, y, height + 0.18), 0.38, radius + 0.06, 0.02) for x, y in spots],
        "gate": [
            box((0, -0.46, 0.14), (0.3, 0.12, 0.28)),
            cylinder((0, -0.46, 0.28), 0.12, 0.15, TO_FRONT),
        ],
    }
    if v.has("flag"):
        top = 0.68 * height + 0.75
        parts["flag"] = [
            rod((0, 0, 0.6 * height), (0, 0, top), 0.045),
            box((0.16, 0, top - 0.1), (0.32, 0.08, 0.22)),
        ]
    return parts


def _windmill(v: Variation) -> Parts:
    height = v.between(0.75, 1.5)
    parts: Parts = {
        "tower": [cone((0, 0, height / 2), height, 0.46, 0.3)],
        "blades": [],
        "roof": [cone((0, 0, height + 0.14), 0.3, 0.34, 0.05)],
    }
    start = 360 * v.free[0] / v.count
    hub = height - 0.05
    for k in range(v.count):
        angle = 2 * pi * k / v.count + start * pi / 180
        center = (0.34 * cos(angle), -0.44, hub + 0.34 * sin(angle))
        turn = turned("y", -angle * 180 / pi)
        parts["blades"].append(box(center, (0.56, 0.12, 0.14), turn))
    parts["blades"].append(cylinder((0, -0.38, hub), 0.26, 0.09, TO_FRONT))
    if v.has("door"):
        parts["door"] = [box((0, -0.38, 0.18), (0.24, 0.16, 0.36))]
    return parts


def _wheels(xs: float, ys: tuple[float, ...], radius: float, width: float = 0.17) -> Parts:
    spots = [(s * xs, y) for s in (-1, 1) for y in ys]
    return {"wheels": [cylinder((x, y, radius), width, radius, TO_SIDE) for x, y in spots]}


def _car(v: Variation) -> Parts:
    length = v.between(1.15, 2.0)
    wheel = v.freely(0, 0.2, 0.25)
    parts: Parts = {
        "body": [box((0, 0, 0.36), (0.74, length, 0.34))],
        **_wheels(0.38, (-0.3 * length, 0.3 * length), wheel),
        "cabin": [box((0, 0.06 * length, 0.64), (0.62, 0.48 * length, 0.3))],
    }
    if v.has("lights"):
        parts["lights"] = [ball((s * 0.25, -length / 2, 0.4), 0.09) for s in (-1, 1)]
    if v.has("spoiler"):
        parts["spoiler"] = [box((0, length / 2 - 0.08, 0.6), (0.76, 0.15, 0.26))]
    return parts


def _truck(v: Variation) -> Parts:
    length = v.between(0.75, 1.5)
    height = v.freely(0, 0.68, 0.85)
    parts: Parts = {
        "container": [box((0, length / 2, 0.24 + height / 2), (0.74, length, height))],
        "cab": [
            box((0, -0.24, 0.52), (0.66, 0.44, 0.56)),
            box((0, -0.44, 0.38), (0.64, 0.2, 0.28)),
        ],
        **_wheels(0.32, (-0.25, 0.3 * length, 0.8 * length), 0.18),
    }
    if v.has("exhaust"):
        parts["exhaust"] = [rod((0.3, -0.05, 0.4), (0.3, -0.05, height + 0.48), 0.065)]
    if v.has("lights"):
        parts["lights"] = [ball((s * 0.2, -0.53, 0.4), 0.08) for s in (-1, 1)]
    return parts


def _boat(v: Variation) -> Parts:
    height = v.between(0.55, 1.25)
    width = v.freely(0, 0.55, 0.65)
    bow = v.freely(1, 0.36, 0.46)
    parts: Parts = {
        "hull": [slab([(-bow, 0), (bow, 0), (width, 0.34), (-width, 0.34)], 0.5)],
    }
    if v.has("sail"):
        parts["sail"] = [slab([(0.06, 0), (0.56, 0), (0.06, height - 0.08)], 0.1, (0, 0, 0.44))]
    parts["mast"] = [cylinder((0, 0, 0.3 + height / 2), height + 0.2, 0.055)]
    if v.has("flag"):
        parts["flag"] = [box((-0.14, 0, height + 0.3), (0.26, 0.1, 0.16))]
    if v.has("cabin"):
        parts["cabin"] = [box((-0.3, 0, 0.44), (0.28, 0.34, 0.24))]
    return parts


def _airplane(v: Variation) -> Parts:
    length = v.between(1.0, 1.9)
    span = v.freely(0, 1.4, 1.7)
    half = length / 2
    parts: Parts = {
        "body": [rod((0, -half, 0), (0, half, 0), 0.2)],
        "wings": [box((0, -0.05, 0), (span, 0.36, 0.14))],
        "tail": [
            slab(
                [(-0.24, 0.1), (0.08, 0.1), (0.16, 0.46), (0, 0.46)],
                0.14,
                (0, half, 0),
                turned("z", 90),
            ),
            box((0, half + 0.02, 0.08), (0.6, 0.24, 0.14)),
        ],
        "engines": [],
    }
    for k in range(v.count):
        x = span * (-0.36 + 0.72 * k / (v.count - 1))
        parts["engines"].append(rod((x, -0.28, -0.12), (x, 0.02, -0.12), 0.09))
    if v.has("propeller"):
        front = -half - 0.2
        parts["propeller"] = [
            box((0, front, 0), (0.52, 0.14, 0.14)),
            ball((0, front - 0.02, 0), 0.11),
        ]
    return parts


def _robot(v: Variation) -> Parts:
    width = v.between(0.34, 0.78)
    head = v.freely(0, 0.34, 0.42)
    parts: Parts = {
        "body": [box((0, 0, 0.68), (width, 0.38, 0.62))],
        "head": [box((0, 0, 1.06 + head / 2), (head, head, head)), cylinder((0, 0, 1), 0.2, 0.09)],
        "legs": [],
        "arms": [],
    }
    for side in (-1, 1):
        x = side * width / 4
        parts["legs"] += [
            cylinder((x, 0, 0.2), 0.4, 0.08),
            box((x, -0.06, 0.05), (0.17, 0.32, 0.1)),
        ]
        shoulder = side * (width / 2 + 0.09)
        hand = (shoulder + side * 0.06, -0.12, 0.36)
        parts["arms"].append(rod((shoulder, 0, 0.9), hand, 0.085))
    if v.has("antenna"):
        top = 1.06 + head
        parts["antenna"] = [
            rod((0, 0, top - 0.05), (0, 0, top + 0.2), 0.05),
            ball((0, 0, top + 0.24), 0.1),
        ]
    if v.has("eyes"):
        parts["eyes"] = [ball((s * 0.1, -head / 2, 1.1 + head / 2), 0.075) for s in (-1, 1)]
    return parts


STREET = (
    Family(
        "rocket",
        _rocket,
        {
            "body": "straight and round",
            "nose": "at the top",
            "fins": "at the bottom",
            "window": "in front",
            "flame": "under the body",
        },
        optional={"window": 0.45, "flame": 0.35},
        counted="fins",
        counts=(3, 5),
    ),
    Family(
        "house",
        _house,
        {
            "walls": "square and plain",
            "roof": "on top of the walls",
            "door": "in the front wall",
            "window": "in the front wall",
            "chimney": "on the roof",
        },
        words=("low", "tall"),
        optional={"window": 0.5, "chimney": 0.45},
    ),
    Family(
        "castle",
        _castle,
        {
            "walls": "between four towers",
            "roofs": "on top of the towers",
            "gate": "in the front wall",
            "flag": "above the walls",
        },
        words=("low", "tall"),
        optional={"flag": 0.45},
    ),
    Family(
        "windmill",
        _windmill,
        {
            "tower": "narrow at the top",
            "blades": "in front of the tower",
            "roof": "on top of the tower",
            "door": "at the bottom of the tower",
        },
        optional={"door": 0.5},
        counted="blades",
        counts=(3, 5),
    ),
    Family(
        "car",
        _car,
        {
            "body": "long and flat",
            "wheels": "under the body",
            "cabin": "on top of the body",
            "lights": "at the front",
            "spoiler": "at the back",
        },
        words=("short", "long"),
        optional={"lights": 0.45, "spoiler": 0.35},
    ),
    Family(
        "truck",
        _truck,
        {
            "container": "at the back",
            "cab": "at the front",
            "wheels": "at the bottom",
            "exhaust": "behind the cab",
            "lights": "at the front",
        },
        words=("short", "long"),
        optional={"exhaust": 0.35, "lights": 0.35},
    ),
    Family(
        "boat",
        _boat,
        {
            "hull": "wide at the top",
            "sail": "beside the mast",
            "mast": "standing on the hull",
            "flag": "at the top of the mast",
            "cabin": "on the hull",
        },
        optional={"sail": 1.0, "flag": 0.35, "cabin": 0.4},
    ),
    Family(
        "airplane",
        _airplane,
        {
            "body": "long and round",
            "wings": "on both sides",
            "tail": "at the back",
            "engines": "under the wings",
            "propeller": "at the front",
        },
        words=("short", "long"),
        optional={"propeller": 0.4},
        counted="engines",
        counts=(2, 4),
    ),
    Family(
        "robot",
        _robot,
        {
            "body": "square, in the middle",
            "head": "at the top",
            "legs": "at the bottom",
            "arms": "on both sides",
            "antenna": "on top of the head",
            "eyes": "on the head",
        },
        words=("thin", "wide"),
        optional={"antenna": 0.4, "eyes": 0.4},
    ),
)
