"""A procedural, captioned 3-D world: deterministic by index, no files."""

from .assembly import Assembly, Part, grid
from .camera import Camera, framed, stand
from .dataset import Sample, Toybox
from .edits import Edit
from .families import FAMILIES
from .objects import ToyObject, build, sample
from .palette import COLORS, PALETTE, nearest_color
from .splits import SPLITS, held_out, main_colors
from .variation import Variation

__all__ = [
    "COLORS",
    "FAMILIES",
    "PALETTE",
    "SPLITS",
    "Assembly",
    "Camera",
    "Edit",
    "Part",
    "Sample",
    "ToyObject",
    "Toybox",
    "Variation",
    "build",
    "framed",
    "grid",
    "held_out",
    "main_colors",
    "nearest_color",
    "sample",
    "stand",
]
