"""What holds for every encoder that the package registers, at full size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from modalign import installed
from modalign.testing import check_encoder

REGISTRY = installed()
NAMES = sorted(
    name
    for (kind, name), owner in REGISTRY.owners.items()
    if kind == "encoders" and owner.startswith("modalign:")
)
PICTURES = [n for n in NAMES if REGISTRY.get("encoders", n).modality == "image"]
# Up to 90 M parameters; the others were checked on small networks of their classes.
SMALL = ["clip-vitb32-pooled", "dinov2-vits14", "dinov2-vits14-reg", "dinov3-vits16"]
SMALL += ["siglip2-base-patch16-224"]

# timm imports torchvision, which warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(params=NAMES)
def spec(request):
    return REGISTRY.get("encoders", request.param)


def test_an_encoder_states_its_origin_licence_and_preprocessing(spec):
    for field in (spec.summary, spec.source, spec.license, spec.preprocessing):
        assert field
    unit = {"image": "px", "text": "positions"}[spec.modality]
    assert spec.preprocessing.startswith(f"{spec.stream.space.rpartition('@')[2]} {unit}")


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_any_shape_and_mode_fit_the_network(name):
    """On the meta device: everything but the numbers."""
    spec = REGISTRY.get("encoders", name)
    encoder = spec.build(weights="random", device="meta", dtype=torch.bfloat16)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 255, (57, 121, 4), dtype=np.uint8)
    grey = Image.new("L", (640, 480), 99)
    batch = encoder.prepare([Image.fromarray(pixels), Image.fromarray(pixels[:, :30]), grey])
    side = encoder.image_size
    assert batch.shape == (3, 3, side, side)
    assert batch.isfinite().all()
    stream = encoder.encode(batch)
    spec.stream.check(stream)
    assert {tokens.dtype for tokens in stream.values()} == {torch.bfloat16}


def test_a_space_belongs_to_one_network_and_layout():
    """Encoders of one space would be interchangeable; none of these are."""
    spaces = [REGISTRY.get("encoders", name).stream.space for name in NAMES]
    assert len(set(spaces)) == len(spaces)
    for name in NAMES:
        space = REGISTRY.get("encoders", name).stream.space
        assert name.startswith(space.partition("/")[0])


def test_only_normed_tokens_are_put_back_on_a_sphere():
    """`project` acts on spaces called "layernorm"; those are the DINO family's here."""
    for name in NAMES:
        normed = REGISTRY.get("encoders", name).stream.normalisation == "layernorm"
        assert normed == name.startswith("dino")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_contract_holds_at_full_size(name):
    check_encoder(REGISTRY.get("encoders", name))
