"""What training reads: data sets by slot, pictures and captions made usable, cached targets."""

from modalign.data.cached import Cached
from modalign.data.encoding import fill_cache
from modalign.data.permutation import key, permute
from modalign.data.pictures import Background, caption, drawn, picture, upright_rgb
from modalign.data.sources import parse_source, split_ratio
from modalign.data.stored_tokens import CacheHeader, bytes_per_sample
from modalign.data.stream import Place, Sample, Skipped, Stream
from modalign.data.surveys import Survey, contact_sheet, survey
from modalign.data.token_cache import TokenCache

__all__ = [
    "Background",
    "CacheHeader",
    "Cached",
    "Place",
    "Sample",
    "Skipped",
    "Stream",
    "Survey",
    "TokenCache",
    "bytes_per_sample",
    "caption",
    "contact_sheet",
    "drawn",
    "fill_cache",
    "key",
    "parse_source",
    "permute",
    "picture",
    "split_ratio",
    "survey",
    "upright_rgb",
]
