"""All object families of the toybox."""

from .families_home import HOME
from .families_nature import NATURE
from .families_street import STREET
from .variation import Family

CATALOGUE: dict[str, Family] = {family.name: family for family in (*HOME, *NATURE, *STREET)}

FAMILIES = tuple(CATALOGUE)
