"""Plants, animals and a snowman."""

from math import cos, pi, sin

from .solids import TO_FRONT, ball, cone, cylinder, rod, slab, tube, turned
from .variation import Family, Parts, Variation


def _snowman(v: Variation) -> Parts:
    width = v.between(0.75, 1.3)
    radii = [0.44, 0.33][: v.count - 1] + [0.25]
    parts: Parts = {"balls": []}
    top = 0.0
    for radius in radii:
        z = top + 0.85 * radius
        parts["balls"].append(ball((0, 0, z), (radius * width, radius * width, radius)))
        top = z + 0.8 * radius
    head = top - 0.2
    front = -0.25 * width
    if v.has("hat"):
        parts["hat"] = [
            cylinder((0, 0, top), 0.11, 0.32),
            cylinder((0, 0, top + 0.17), 0.3, v.freely(0, 0.19, 0.23)),
        ]
    if v.has("nose"):
        parts["nose"] = [cone((0, front - 0.1, head), 0.3, 0.08, 0.02, TO_FRONT)]
    if v.has("arms"):
        z = head - 0.35
        parts["arms"] = [
            rod((s * 0.2 * width, 0, z), (s * (0.3 * width + 0.32), 0, z + 0.25), 0.055)
            for s in (-1, 1)
        ]
    if v.has("scarf"):
        parts["scarf"] = [tube((0, 0, head - 0.2), 0.12, 0.25 * width + 0.05, 0.1)]
    return parts


def _tree(v: Variation) -> Parts:
    trunk = v.between(0.4, 1.2)
    width = v.freely(0, 0.46, 0.56)
    parts: Parts = {
        "crown": [ball((0, 0, trunk + 0.36), (width, width, v.freely(1, 0.42, 0.52)))],
        "trunk": [cone((0, 0, trunk / 2 + 0.05), trunk + 0.1, 0.19, 0.14)],
    }
    if v.has("apples"):
        parts["apples"] = []
        for k in range(6):
            angle = 2 * pi * k / 6
            x, y = 0.93 * width * cos(angle), 0.93 * width * sin(angle)
            parts["apples"].append(ball((x, y, trunk + 0.36 + 0.14 * (-1) ** k), 0.1))
    if v.has("swing"):
        parts["swing"] = [
            rod((s * 0.12 + 0.36, -0.12, trunk + 0.2), (s * 0.12 + 0.36, -0.12, 0.12), 0.07)
            for s in (-1, 1)
        ]
        parts["swing"].append(cylinder((0.36, -0.12, 0.12), 0.12, 0.19))
    return parts


def _mushroom(v: Variation) -> Parts:
    stem = v.between(0.45, 1.1)
    width = v.freely(0, 0.44, 0.54)
    height = v.freely(1, 0.26, 0.36)
    parts: Parts = {
        "cap": [ball((0, 0, stem + 0.1), (width, width, height))],
        "stem": [cone((0, 0, stem / 2), stem, 0.26, 0.18)],
        "spots": [],
    }
    for k in range(v.count):
        angle = 2 * pi * k / v.count - 1.2
        x, y = 0.62 * width * cos(angle), 0.62 * width * sin(angle)
        parts["spots"].append(ball((x, y, stem + 0.1 + 0.74 * height), 0.1))
    if v.has("grass"):
        parts["grass"] = [
            cone((0.3 * cos(a), 0.3 * sin(a), 0.12), 0.24, 0.08, 0.03) for a in (-2.6, -1.2, 0.2)
        ]
    return parts


def _flower(v: Variation) -> Parts:
    stem = v.between(0.35, 1.2)
    parts: Parts = {"petals": [], "center": [ball((0, -0.06, stem + 0.3), (0.2, 0.15, 0.2))]}
    length = v.freely(0, 0.2, 0.25)
    for k in range(v.count):
        angle = 2 * pi * k / v.count + pi / 2
        center = (0.31 * cos(angle), 0, stem + 0.3 + 0.31 * sin(angle))
        turn = turned("y", -angle * 180 / pi)
        parts["petals"].append(ball(center, (length, 0.075, 0.78 / v.count), turn))
    parts["stem"] = [rod((0, 0.04, 0.06), (0, 0.04, stem + 0.25), 0.06)]
    if v.has("leaves"):
        parts["leaves"] = [
            ball((s * 0.2, 0.02, 0.2), (0.2, 0.1, 0.06), turned("y", -s * 30)) for s in (-1, 1)
        ]
    if v.has("pot"):
        parts["pot"] = [cone((0, 0.04, -0.05), 0.3, 0.16, 0.23)]
    return parts


def _cactus(v: Variation) -> Parts:
    height = v.between(0.6, 1.35)
    parts: Parts = {
        "body": [rod((0, 0, 0.3), (0, 0, 0.3 + height), v.freely(0, 0.17, 0.21))],
        "pot": [cone((0, 0, 0.17), 0.34, 0.22, 0.32), cylinder((0, 0, 0.35), 0.1, 0.35)],
        "arms": [],
    }
    for k in range(v.count):
        side = (1, -1, 1)[k]
        y, z = ((0, 0.45), (0, 0.62), (0, 0.8))[k]
        z = 0.3 + height * z
        reach = 0.24 + (0.1 if k == 0 else 0.06)
        parts["arms"] += [
            rod((0, y, z), (side * reach, y, z), 0.075),
            rod((side * reach, y, z), (side * reach, y, z + 0.2 * height), 0.075),
        ]
    if v.has("flower"):
        parts["flower"] = [ball((0, 0, 0.5 + height), (0.16, 0.16, 0.11))]
    return parts


def _fish(v: Variation) -> Parts:
    height = v.between(0.2, 0.44)
    depth = v.freely(0, 0.15, 0.2)
    parts: Parts = {
        "body": [ball((0, 0, 0), (0.52, depth, height))],
        "tail": [slab([(0.4, 0), (0.8, -0.32), (0.8, 0.32)], 0.11)],
        "fin": [slab([(-0.14, 0), (0.24, 0), (0.26, 0.26)], 0.1, (0, 0, height - 0.08))],
    }
    if v.has("eyes"):
        parts["eyes"] = [ball((-0.36, s * 0.62 * depth, 0.2 * height), 0.075) for s in (-1, 1)]
    if v.has("stripe"):
        z = height * (1 - (0.1 / 0.52) ** 2) ** 0.5
        y = depth * z / height
        parts["stripe"] = [ball((-0.06, 0, 0), (0.09, y + 0.05, z + 0.04))]
    return parts


def _dog(v: Variation) -> Parts:
    length = v.between(0.5, 1.15)
    leg = v.freely(0, 0.36, 0.46)
    half = length / 2
    z = leg + 0.14
    feet = [(x, y) for x in (-half + 0.02, half - 0.02) for y in (-0.12, 0.12)]
    parts: Parts = {
        "body": [
            rod((-half, 0, z), (half, 0, z), 0.2),
            *(cylinder((x, y, leg / 2), leg + 0.06, 0.075) for x, y in feet),
        ],
        "head": [
            ball((half + 0.2, 0, z + 0.34), (0.23, 0.2, 0.22)),
            ball((half + 0.42, 0, z + 0.27), (0.15, 0.11, 0.1)),
        ],
        "ears": [ball((half + 0.12, s * 0.18, z + 0.42), (0.08, 0.07, 0.19)) for s in (-1, 1)],
    }
    if v.has("tail"):
        parts["tail"] = [rod((-half - 0.12, 0, z + 0.1), (-half - 0.34, 0, z + 0.42), 0.06)]
    if v.has("collar"):
        parts["collar"] = [tube((half + 0.08, 0, z + 0.16), 0.11, 0.23, 0.1, turned("y", 35))]
    return parts


NATURE = (
    Family(
        "snowman",
        _snowman,
        {
            "balls": "one above the other",
            "hat": "on the head",
            "nose": "on the face",
            "arms": "on both sides",
            "scarf": "around the neck",
        },
        words=("thin", "wide"),
        optional={"hat": 1.0, "nose": 0.5, "arms": 0.4, "scarf": 0.4},
        counted="balls",
        counts=(2, 3),
    ),
    Family(
        "tree",
        _tree,
        {
            "crown": "round, at the top",
            "trunk": "under the crown",
            "apples": "in the crown",
            "swing": "under the crown",
        },
        optional={"apples": 0.4, "swing": 0.25},
    ),
    Family(
        "mushroom",
        _mushroom,
        {
            "cap": "round, at the top",
            "stem": "under the cap",
            "spots": "on the cap",
            "grass": "at the bottom",
        },
        optional={"grass": 0.35},
        counted="spots",
        counts=(3, 5),
    ),
    Family(
        "flower",
        _flower,
        {
            "petals": "in a ring",
            "center": "inside the ring of petals",
            "stem": "under the petals",
            "leaves": "on the stem",
            "pot": "at the bottom",
        },
        optional={"leaves": 0.5, "pot": 0.3},
        counted="petals",
        counts=(4, 7),
    ),
    Family(
        "cactus",
        _cactus,
        {
            "body": "straight and round",
            "pot": "at the bottom",
            "arms": "on the sides",
            "flower": "on top",
        },
        optional={"flower": 0.4},
        counted="arms",
        counts=(1, 3),
    ),
    Family(
        "fish",
        _fish,
        {
            "body": "round and smooth",
            "tail": "at the back",
            "fin": "on top of the body",
            "eyes": "on both sides",
            "stripe": "around the body",
        },
        words=("thin", "tall"),
        optional={"eyes": 0.5, "stripe": 0.35},
    ),
    Family(
        "dog",
        _dog,
        {
            "body": "on four legs",
            "head": "at the front",
            "ears": "on the head",
            "tail": "at the back",
            "collar": "around the neck",
        },
        words=("short", "long"),
        optional={"tail": 0.7, "collar": 0.4},
    ),
)
