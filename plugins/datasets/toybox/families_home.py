"""Families found in a home."""

from math import cos, pi, sin

from .solids import TO_FRONT, arc, ball, box, cone, cylinder, rod, slab, tube
from .variation import Family, Parts, Variation


def _mug(v: Variation) -> Parts:
    height = v.between(0.55, 1.1)
    radius = v.freely(0, 0.36, 0.42)
    ring = min(0.24, 0.36 * height)
    parts: Parts = {
        "body": [
            tube((0, 0, height / 2), height, radius, radius - 0.08),
            cylinder((0, 0, 0.05), 0.1, radius - 0.02),
        ]
    }
    if v.has("handle"):
        parts["handle"] = arc((radius - 0.02, 0, height / 2), ring, 0.12, -90, 90)
    if v.has("spoon"):
        parts["spoon"] = [
            rod((0.05, 0.1, 0.12), (-0.3, 0.12, height + 0.3), 0.05),
            ball((-0.31, 0.12, height + 0.32), (0.09, 0.06, 0.13)),
        ]
    return parts


def _legs(v: Variation, x: float, y: float, height: float, radius: float) -> Parts:
    spots = [(-x, -y), (x, -y), (x, y), (-x, y)] if v.count == 4 else [(-x, -y), (x, -y), (0, y)]
    return {"legs": [cylinder((a, b, height / 2), height, radius) for a, b in spots]}


def _chair(v: Variation) -> Parts:
    back = v.between(0.45, 1.15)
    width = v.freely(0, 0.7, 0.85)
    parts: Parts = {
        "seat": [
            box((0, 0, 0.5), (width, 0.8, 0.14)),
            box((0, 0.34, 0.5 + back / 2), (width, 0.14, back)),
        ],
        **_legs(v, width / 2 - 0.09, 0.31, 0.5, 0.075),
    }
    if v.has("cushion"):
        parts["cushion"] = [ball((0, -0.06, 0.58), (width / 2 - 0.06, 0.3, 0.12))]
    if v.has("armrests"):
        parts["armrests"] = []
        for side in (-1, 1):
            x = side * (width / 2 - 0.03)
            parts["armrests"] += [
                box((x, -0.02, 0.8), (0.11, 0.66, 0.1)),
                box((x, -0.27, 0.66), (0.1, 0.1, 0.26)),
            ]
    return parts


def _table(v: Variation) -> Parts:
    height = v.between(0.35, 1.05)
    length = v.freely(0, 0.95, 1.3)
    if v.free[1] < 0.4:
        parts: Parts = {"top": [cylinder((0, 0, height), 0.12, length / 2)]}
        x = y = 0.3 * length
    else:
        parts = {"top": [box((0, 0, height), (length, 0.85, 0.12))]}
        x, y = length / 2 - 0.1, 0.32
    parts |= _legs(v, x, y, height, 0.075)
    if v.has("shelf"):
        parts["shelf"] = [box((0, 0, 0.35 * height), (1.7 * x, 1.7 * y, 0.08))]
    if v.has("vase"):
        parts["vase"] = [
            cone((0.05, 0.05, height + 0.17), 0.26, 0.15, 0.09),
            cone((0.05, 0.05, height + 0.33), 0.1, 0.08, 0.13),
        ]
    return parts


def _lamp(v: Variation) -> Parts:
    pole = v.between(0.55, 1.3)
    top = v.freely(0, 0.18, 0.3)
    parts: Parts = {
        "shade": [cone((0, 0, pole + 0.3), 0.5, 0.42, top)],
        "pole": [cylinder((0, 0, pole / 2 + 0.06), pole + 0.1, 0.095)],
        "base": [cylinder((0, 0, 0.05), 0.12, v.freely(1, 0.26, 0.34))],
    }
    if v.has("knob"):
        parts["knob"] = [ball((0, 0, pole + 0.62), 0.11)]
    return parts


def _bottle(v: Variation) -> Parts:
    radius = v.between(0.17, 0.36)
    height = v.freely(0, 0.75, 0.9)
    parts: Parts = {
        "body": [
            cylinder((0, 0, height / 2), height, radius),
            cone((0, 0, height + 0.1), 0.22, radius, 0.12),
            cylinder((0, 0, height + 0.28), 0.2, 0.12),
        ],
    }
    if v.has("cap"):
        parts["cap"] = [cylinder((0, 0, height + 0.42), 0.2, 0.17)]
    if v.has("label"):
        parts["label"] = [cylinder((0, 0, 0.48 * height), 0.34, radius + 0.02)]
    return parts


def _ladder(v: Variation) -> Parts:
    width = v.between(0.6, 1.15)
    height = v.freely(0, 1.5, 1.7)
    parts: Parts = {
        "rails": [box((s * width / 2, 0, height / 2), (0.14, 0.14, height)) for s in (-1, 1)],
        "rungs": [
            rod((-width / 2, 0, z), (width / 2, 0, z), 0.05)
            for z in ((k + 0.6) * height / (v.count + 0.2) for k in range(v.count))
        ],
    }
    if v.has("platform"):
        parts["platform"] = [box((0, 0.05, height + 0.04), (width + 0.3, 0.5, 0.12))]
    return parts


def _bed(v: Variation) -> Parts:
    width = v.between(0.65, 1.35)
    parts: Parts = {
        "mattress": [box((0, -0.03, 0.38), (width + 0.02, 1.58, 0.4))],
        "frame": [
            box((0, 0.83, 0.42), (width + 0.06, 0.12, v.freely(0, 0.75, 0.95))),
            box((0, -0.83, 0.13), (width + 0.06, 0.12, 0.26)),
            box((0, 0, 0.12), (width + 0.06, 1.6, 0.14)),
        ],
    }
    if v.has("pillow"):
        parts["pillow"] = [ball((0, 0.52, 0.6), (0.36 * width, 0.2, 0.12))]
    if v.has("blanket"):
        parts["blanket"] = [box((0, -0.45, 0.4), (width + 0.08, 0.6, 0.42))]
    return parts


def _clock(v: Variation) -> Parts:
    depth = v.between(0.14, 0.5)
    parts: Parts = {
        "face": [cylinder((0, 0, 0), depth, 0.5, TO_FRONT)],
        "rim": [tube((0, 0.04 - depth / 2, 0), 0.14, 0.57, 0.49, TO_FRONT)],
        "hands": [],
    }
    front = -depth / 2 - 0.03
    for angle, length in ((2 * pi * v.free[0], 0.26), (2 * pi * v.free[1], 0.4)):
        tip = (length * sin(angle), front, length * cos(angle))
        parts["hands"].append(rod((0, front, 0), tip, 0.045))
    if v.has("feet"):
        parts["feet"] = [rod((s * 0.3, 0, -0.42), (s * 0.42, 0, -0.68), 0.07) for s in (-1, 1)]
    if v.has("bells"):
        parts["bells"] = [ball((s * 0.32, 0, 0.58), 0.17) for s in (-1, 1)]
    return parts


def _umbrella(v: Variation) -> Parts:
    radius = v.between(0.4, 0.85)
    parts: Parts = {
        "canopy": [
            cone((0, 0, 0.95), 0.16, radius, 0.66 * radius),
            cone((0, 0, 1.12), 0.2, 0.66 * radius, 0.06),
        ]
    }
    if v.has("handle"):
        parts["handle"] = [
            rod((0, 0, 0.12), (0, 0, 0.95), 0.075),
            *arc((0.13, 0, 0.12), 0.13, 0.15, 180, 350),
        ]
    if v.has("tip"):
        parts["tip"] = [cone((0, 0, 1.28), 0.22, 0.08, 0.04)]
    return parts


def _guitar(v: Variation) -> Parts:
    neck = v.between(0.4, 1.0)
    parts: Parts = {
        "body": [
            cylinder((0, 0, 0), 0.22, v.freely(0, 0.36, 0.42), TO_FRONT),
            cylinder((0, 0, 0.4), 0.22, v.freely(1, 0.26, 0.31), TO_FRONT),
        ],
        "neck": [box((0, -0.08, 0.5 + neck / 2), (0.15, 0.14, neck + 0.3))],
        "head": [box((0, -0.06, 0.72 + neck), (0.27, 0.14, 0.28))],
    }
    if v.has("hole"):
        parts["hole"] = [cylinder((0, -0.1, 0.1), 0.12, 0.15, TO_FRONT)]
    return parts


def _sword(v: Variation) -> Parts:
    length = v.between(0.6, 1.25)
    width = v.freely(0, 0.2, 0.28)
    parts: Parts = {
        "blade": [
            box((0, 0, length / 2), (width, 0.1, length)),
            slab([(-width / 2, 0), (width / 2, 0), (0, 0.22)], 0.1, (0, 0, length - 0.01)),
        ],
        "handle": [
            box((0, 0, 0), (v.freely(1, 0.5, 0.64), 0.14, 0.12)),
            cylinder((0, 0, -0.18), 0.32, 0.07),
        ],
    }
    if v.has("gem"):
        parts["gem"] = [ball((0, 0, -0.38), 0.12)]
    return parts


def _ice_cream(v: Variation) -> Parts:
    height = v.between(0.4, 0.95)
    heights = [height + 0.16 + 0.34 * k for k in range(v.count)]
    radii = [v.freely(0, 0.33, 0.37) - 0.05 * k for k in range(v.count)]
    parts: Parts = {
        "scoops": [ball((0, 0, z), r) for z, r in zip(heights, radii, strict=True)],
        "cone": [cone((0, 0, height / 2), height, 0.06, 0.3)],
    }
    if v.has("cherry"):
        parts["cherry"] = [ball((0, 0, heights[-1] + radii[-1] + 0.05), 0.11)]
    if v.has("wafer"):
        z = heights[-1] + radii[-1]
        parts["wafer"] = [rod((0.12, 0, z - 0.2), (0.36, 0, z + 0.24), 0.06)]
    return parts


_CHAIR_PLACES = {
    "seat": "in the middle, with a backrest",
    "legs": "under the seat",
    "cushion": "on the seat",
    "armrests": "on both sides of the seat",
}

HOME = (
    Family(
        "mug",
        _mug,
        {"body": "open at the top", "handle": "on one side", "spoon": "inside the body"},
        optional={"handle": 1.0, "spoon": 0.35},
    ),
    Family(
        "chair",
        _chair,
        _CHAIR_PLACES,
        optional={"cushion": 0.35, "armrests": 0.35},
        counted="legs",
        counts=(3, 4),
    ),
    Family(
        "table",
        _table,
        {
            "top": "flat and level",
            "legs": "under the top",
            "shelf": "between the legs",
            "vase": "on the top",
        },
        words=("low", "tall"),
        optional={"shelf": 0.3, "vase": 0.35},
        counted="legs",
        counts=(3, 4),
    ),
    Family(
        "lamp",
        _lamp,
        {
            "shade": "at the top",
            "pole": "under the shade",
            "base": "on the floor",
            "knob": "on top of the shade",
        },
        optional={"knob": 0.4},
    ),
    Family(
        "bottle",
        _bottle,
        {"body": "round and straight", "cap": "on top of the body", "label": "around the body"},
        words=("thin", "wide"),
        optional={"cap": 1.0, "label": 0.5},
    ),
    Family(
        "ladder",
        _ladder,
        {"rails": "on both sides", "rungs": "between the rails", "platform": "at the top"},
        words=("narrow", "wide"),
        optional={"platform": 0.35},
        counted="rungs",
        counts=(3, 6),
    ),
    Family(
        "bed",
        _bed,
        {
            "mattress": "flat and soft",
            "frame": "around the mattress",
            "pillow": "at one end of the mattress",
            "blanket": "over the mattress",
        },
        words=("narrow", "wide"),
        optional={"pillow": 0.85, "blanket": 0.4},
    ),
    Family(
        "clock",
        _clock,
        {
            "face": "round and flat",
            "rim": "around the face",
            "hands": "on the face",
            "feet": "at the bottom",
            "bells": "at the top",
        },
        words=("thin", "thick"),
        optional={"feet": 0.4, "bells": 0.4},
    ),
    Family(
        "umbrella",
        _umbrella,
        {"canopy": "open at the top", "handle": "under the canopy", "tip": "above the canopy"},
        words=("narrow", "wide"),
        optional={"handle": 1.0, "tip": 0.5},
    ),
    Family(
        "guitar",
        _guitar,
        {
            "body": "round and flat",
            "neck": "above the body",
            "head": "at the end of the neck",
            "hole": "in front of the body",
        },
        words=("short", "long"),
        optional={"hole": 0.5},
    ),
    Family(
        "sword",
        _sword,
        {"blade": "pointing up", "handle": "under the blade", "gem": "at the end of the handle"},
        words=("short", "long"),
        optional={"gem": 0.4},
    ),
    Family(
        "ice cream",
        _ice_cream,
        {
            "scoops": "round and cold",
            "cone": "at the bottom",
            "cherry": "on top",
            "wafer": "stuck in the top",
        },
        words=("short", "long"),
        optional={"cherry": 0.4, "wafer": 0.3},
        counted="scoops",
        counts=(1, 3),
    ),
)
