"""What an encoder's weights look like from outside: a few numbers of one fixed sample.

A head works with the encoder weights it was trained on, and with no others of the same name and
shape. Hashes of files would differ between formats, dtypes and libraries that hold equal weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modalign.specs import TargetEncoder
from modalign.testing import SAMPLES

VALUES = 16  # of each group, evenly spaced over its tokens and channels
# Between float32 and bfloat16, or two libraries, values differ by about 0.02 of their deviation;
# between two trainings by more than 1.
TOLERANCE = 0.2

Fingerprint = Mapping[str, Sequence[float]]


def fingerprint(encoder: TargetEncoder, modality: str = "image") -> dict[str, list[float]]:
    """Per group, some values of what `encoder` makes of the first sample of its modality."""
    stream = encoder.encode(encoder.prepare(SAMPLES[modality]()[:1]))
    found = {}
    for name, tokens in stream.items():
        flat = tokens.float().flatten()
        places = [index * (len(flat) - 1) // (VALUES - 1) for index in range(VALUES)]
        found[name] = [round(value, 5) for value in flat[places].tolist()]
    return found


def same_weights(left: Fingerprint, right: Fingerprint) -> bool:
    """Whether two fingerprints can be of the same weights, up to precision."""
    if left.keys() != right.keys():
        return False
    for name, values in left.items():
        mean = sum(values) / len(values)
        deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        pairs = zip(values, right[name], strict=True)
        near = TOLERANCE * max(deviation, 1e-6)
        if not all(abs(one - other) <= near for one, other in pairs):  # so that NaN is no equal
            return False
    return True
