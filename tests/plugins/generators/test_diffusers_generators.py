"""Stock pipelines as generators: what all six keep, on tiny networks in the released layouts.

The oracle is the stock pipeline itself, called directly with its own embedding argument.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modalign import GenerationError, Mesh, Picture, installed
from modalign.testing import check_generator

from .diffusers_tiny import PAINT, WRITE, small, write

# diffusers turns tensors into arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEPS, GUIDANCE = 2, 3.0
SAMPLED = [name for name in WRITE if name != "rae-decoder"]


def spec_of(name):
    return installed().get("generators", name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    written = {name: tmp_path_factory.mktemp("weights") / name for name in WRITE}
    for name, folder in written.items():
        write(name, folder)
    return written


@pytest.fixture
def build(folders):
    """Builds a registered generator from tiny weights, by its own loader."""
    return lambda name: small(spec_of(name).build(weights=folders[name]))


def tokens(name, batch=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randn(batch, group.num_tokens, group.dim, generator=draw)
        for group in spec_of(name).accepts.groups
    }


def make(name, generator, stream, seed=0, **options):
    options = {} if name == "rae-decoder" else {"steps": STEPS, "guidance": GUIDANCE} | options
    return generator.generate(stream, seed=seed, **options)


def same(left, right):
    assert type(left) is type(right)
    fields = ("pixels",) if isinstance(left, Picture) else ("vertices", "faces", "vertex_colors")
    return all(np.array_equal(getattr(left, f), getattr(right, f)) for f in fields)


@pytest.mark.parametrize("name", WRITE)
def test_every_generator_says_what_it_is(name):
    spec = spec_of(name)
    for said in (spec.summary, spec.source, spec.license, spec.null_condition, spec.image_domain):
        assert said
    assert spec.requires[0] == "diffusers"


def test_the_licence_of_flux_is_shown_twice():
    spec = spec_of("flux-redux")
    assert spec.license == "FLUX.1 [dev] Non-Commercial License"
    assert "NON-COMMERCIAL" in spec.summary  # `modalign list` shows no licences


@pytest.mark.parametrize("name", WRITE)
def test_assets_are_of_the_declared_kind_and_not_empty(name, build):
    generator = build(name)
    kind = {"mesh": Mesh, "picture": Picture}[spec_of(name).produces]
    assets = make(name, generator, tokens(name))
    assert [type(asset) for asset in assets] == [kind, kind]
    for asset in assets:
        if kind is Mesh:
            assert len(asset.faces) > 100
            assert np.abs(asset.vertices).max() <= 0.5
            assert 0 <= asset.vertex_colors.min() < asset.vertex_colors.max() <= 1
        else:
            assert asset.pixels.shape == (16, 16, 3)
            assert asset.pixels.std() > 1  # something is to be seen


@pytest.mark.parametrize("name", WRITE)
def test_element_k_depends_on_its_tokens_and_seed_plus_k_alone(name, build):
    generator, stream = build(name), tokens(name)
    first, second = make(name, generator, stream, seed=5)
    (alone,) = make(name, generator, {k: x[1:] for k, x in stream.items()}, seed=6)
    assert same(alone, second)
    assert not same(first, second)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_seed_repeats_and_changes_the_asset(name, build):
    generator, stream = build(name), tokens(name, batch=1)
    (one,), (again,), (other,) = (make(name, generator, stream, seed) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)


@pytest.mark.parametrize("name", WRITE)
def test_every_group_of_tokens_changes_the_asset(name, build):
    generator, stream = build(name), tokens(name, batch=1)
    (asset,) = make(name, generator, stream)
    for group in stream:
        (other,) = make(name, generator, stream | {group: -3 * stream[group]})
        assert not same(asset, other), group


@pytest.mark.parametrize("name", SAMPLED)
def test_guidance_changes_the_asset_and_may_be_off(name, build):
    generator, stream = build(name), tokens(name, batch=1)
    (asset,) = make(name, generator, stream)
    (unguided,) = make(name, generator, stream, guidance=1.0)
    assert not same(asset, unguided)


@pytest.mark.parametrize("name", PAINT)
def test_the_picture_is_the_one_of_the_stock_pipeline_called_directly(name, build):
    generator, stream = build(name), tokens(name)
    packed = generator.accepts.pack(stream)
    for k, asset in enumerate(make(name, generator, stream, seed=3)):
        noise = torch.Generator().manual_seed(3 + k)
        image = PAINT[name](generator, packed[k : k + 1], noise, STEPS, GUIDANCE)
        assert np.array_equal(asset.pixels, np.asarray(image))


@pytest.mark.parametrize("name", SAMPLED)
def test_progress_counts_every_call_of_the_network_and_ends_at_the_total(name, build):
    generator, seen = build(name), []
    make(name, generator, tokens(name, batch=1), progress=seen.append)
    stage = seen[0].stage
    steps = [(p.step, p.total) for p in seen if p.stage == stage]
    assert steps == [(k + 1, len(steps)) for k in range(len(steps))]
    assert len(steps) >= STEPS
    again = []
    make(name, generator, tokens(name, batch=1), progress=again.append)
    assert again == seen  # nothing is left hanging on the network


@pytest.mark.parametrize("name", WRITE)
def test_tokens_that_are_not_finite_are_refused(name, build):
    stream = tokens(name, batch=1)
    next(iter(stream.values()))[0, 0, 0] = float("nan")
    with pytest.raises(GenerationError, match="stage 'condition'"):
        make(name, build(name), stream)


@pytest.mark.parametrize("name", ["sdxl-eva", "kandinsky-2.2", "ip-adapter", "flux-redux"])
def test_pixels_that_are_not_finite_name_their_stage(name, build):
    generator = build(name)
    decoder = getattr(generator.pipeline, "vae", None) or generator.pipeline.movq
    torch.nn.init.constant_(decoder.decoder.conv_out.bias, float("nan"))
    with pytest.raises(GenerationError, match="stage 'picture' produced non-finite"):
        make(name, generator, tokens(name, batch=1))


@pytest.mark.parametrize("name", WRITE)
def test_a_stream_of_another_layout_is_refused(name, build):
    with pytest.raises(ValueError, match="has groups"):
        make(name, build(name), {"queries": torch.zeros(1, 1, 8)})


class Hurried:
    """A generator that takes few steps where it is not told how many."""

    def __init__(self, name, generator):
        self.name, self.generator, self.accepts = name, generator, generator.accepts

    def generate(self, stream, **options):
        return make(self.name, self.generator, stream, **options)


@pytest.mark.parametrize("name", WRITE)
def test_the_contract_of_generators_is_kept(name, build):
    hurried = replace(spec_of(name), build=lambda weights: Hurried(name, build(name)))
    check_generator(hurried, weights="here")


@pytest.mark.parametrize("name", WRITE)
def test_networks_are_frozen_and_take_the_type_asked_for(name, folders):
    generator = spec_of(name).build(weights=folders[name], dtype=torch.bfloat16)
    holders = vars(generator.pipeline) if hasattr(generator, "pipeline") else vars(generator)
    networks = [part for part in holders.values() if isinstance(part, torch.nn.Module)]
    assert networks
    for network in networks:
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
        assert not network.training
    assert make(name, small(generator), tokens(name, batch=1))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # 859,520,964 of Stable Diffusion 1.5 and the 49 M of the adapter.
        ("ip-adapter", 908_608_452),
        ("flux-redux", 11_901_408_320),  # "12 billion"
        ("shap-e-img2img", 315_960_320),
        ("rae-decoder", 415_351_552),
    ],
)
def test_the_full_size_can_be_looked_at_without_memory(name, parameters):
    generator = spec_of(name).build(weights="random", device="meta")
    if name == "rae-decoder":
        network = generator.model
    else:
        parts = generator.pipeline.components
        network = parts.get("unet") or parts.get("transformer") or parts["prior"]
    assert network.device.type == "meta"
    assert sum(tensor.numel() for tensor in network.parameters()) == parameters
