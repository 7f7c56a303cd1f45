"""The test kit accepts well-behaved plugins and names the clause that a broken one breaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

from modalign import (
    EncoderSpec,
    GenerationError,
    GeneratorSpec,
    PromptError,
    SpaceMap,
    TokenGroup,
    TokenStreamSpec,
    VLMOutput,
    VLMSpec,
    installed,
)
from modalign.testing import (
    ContractError,
    check_encoder,
    check_generator,
    check_space_map,
    check_vlm,
    pictures,
    point_clouds,
)

STREAM = TokenStreamSpec(
    space="toy/layernorm", groups=(TokenGroup(name="patches", shape=(2, 2), dim=12),)
)


def fixed(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Encoder:
    def __init__(self, weights="random"):
        self.stream = STREAM
        self.weight = fixed(48, 48)

    def prepare(self, images):
        small = [np.asarray(image.resize((4, 4)), dtype=np.float32) / 255 for image in images]
        return torch.from_numpy(np.stack(small)).flatten(1)

    @torch.no_grad()
    def encode(self, batch):
        return {"patches": layer_norm((batch @ self.weight).unflatten(1, (4, 12)), (12,))}


class EncoderOfPoints(Encoder):
    """Sixteen points of each cloud, evenly taken, make a sample."""

    def __init__(self, weights="random"):
        super().__init__()
        self.weight = fixed(96, 48)

    def prepare(self, images):
        rows = [cloud[np.linspace(0, len(cloud) - 1, 16).astype(int)] for cloud in images]
        return torch.from_numpy(np.stack(rows)).flatten(1)


class EncoderBlindToPoints(EncoderOfPoints):
    def prepare(self, images):
        return torch.ones_like(super().prepare(images))


class EncoderWithGradient(Encoder):
    def __init__(self, weights="random"):
        super().__init__()
        self.weight = self.weight.requires_grad_()

    def encode(self, batch):
        return {"patches": layer_norm((batch @ self.weight).unflatten(1, (4, 12)), (12,))}


class EncoderOfInferenceTensors(Encoder):
    @torch.inference_mode()
    def encode(self, batch):
        return super().encode(batch.clone())


class EncoderOfBatches(Encoder):
    def encode(self, batch):
        return super().encode(batch - batch.mean(0) + 1e-2 * batch)


class EncoderOffItsSpace(Encoder):
    def encode(self, batch):
        return {"patches": 2 * super().encode(batch)["patches"]}


class EncoderOfAnotherLayout(Encoder):
    def encode(self, batch):
        return {"patches": super().encode(batch)["patches"][:, :3]}


class EncoderThatLeavesOutOfOne(Encoder):
    def encode(self, batch):
        stream = super().encode(batch)
        return stream if len(batch) > 1 else {}


class EncoderThatDraws(Encoder):
    def encode(self, batch):
        torch.rand(1)
        return super().encode(batch)


class EncoderBlindToImages(Encoder):
    def encode(self, batch):
        return super().encode(torch.ones_like(batch) * torch.arange(48))


class VLM(nn.Module):
    """One causal attention layer over the prompt's bytes and the soft tokens."""

    hidden_dim = 8

    def __init__(self, weights="random"):
        super().__init__()
        self.table = nn.Parameter(fixed(256, 8), requires_grad=False)
        self.mix = nn.Parameter(fixed(8, 8, seed=1), requires_grad=False)

    def prepare(self, prompts, answers=None):
        if any(not prompt.text.strip() for prompt in prompts):
            raise PromptError("empty")
        rows = [list(prompt.text.encode()) + [7] * len(prompt.images) for prompt in prompts]
        width = max(map(len, rows))
        return {
            "ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
            "mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        }

    def seen(self, mask, num_soft):
        causal = torch.ones(num_soft, num_soft).tril()
        return torch.cat(
            [mask[:, None].expand(-1, num_soft, -1), causal.expand(len(mask), -1, -1)], dim=2
        )

    def read(self, batch, soft):
        soft = soft.expand(len(batch["ids"]), -1, -1)
        keys = torch.cat([self.table[batch["ids"]], soft], dim=1)
        scores = soft @ self.mix @ keys.transpose(1, 2) / 8
        seen = self.seen(batch["mask"], soft.shape[1])
        return VLMOutput(scores.masked_fill(seen == 0, -1e9).softmax(-1) @ keys + soft)


class VLMThatSeesPadding(VLM):
    def seen(self, mask, num_soft):
        return super().seen(torch.ones_like(mask), num_soft)


class VLMThatLooksAhead(VLM):
    def seen(self, mask, num_soft):
        ones = torch.ones(len(mask), num_soft, num_soft)
        return torch.cat([super().seen(mask, num_soft)[:, :, :-num_soft], ones], dim=2)


class VLMThatLearns(VLM):
    def __init__(self, weights="random"):
        super().__init__()
        self.mix.requires_grad_()


class VLMWithoutGradient(VLM):
    def read(self, batch, soft):
        return VLMOutput(super().read(batch, soft.detach()).hidden)


class VLMDeafToPrompts(VLM):
    def seen(self, mask, num_soft):
        return super().seen(torch.zeros_like(mask), num_soft)


class VLMThatReadsNothing(VLM):
    def prepare(self, prompts, answers=None):
        return super().prepare([type(p)(p.text.strip() or "?", p.images) for p in prompts])


class DeepVLM(VLM):
    """Layer 0 is what enters, layer 1 what `read` gives."""

    num_layers = 1

    def own(self, batch):
        return self.table[batch["ids"]] * batch["mask"][:, :, None]

    def read_layers(self, batch, soft, *, layers, prompt_states=False):
        last = self.read(batch, soft).hidden
        states = torch.stack([soft.expand_as(last), last], dim=1)
        if not prompt_states:
            return VLMOutput(states[:, list(layers)])
        own = self.own(batch)[:, None].expand(-1, 2, -1, -1)
        seen = torch.cat([batch["mask"], batch["mask"].new_ones(last.shape[:2])], dim=1)
        return VLMOutput(torch.cat([own, states], dim=2)[:, list(layers)], mask=seen)


class DeepVLMWithDirtyPadding(DeepVLM):
    def own(self, batch):
        return self.table[batch["ids"]]


class DeepVLMOfBatches(DeepVLM):
    def own(self, batch):
        return super().own(batch) * len(batch["ids"])


class DeepVLMOfAnotherLayer(DeepVLM):
    def read_layers(self, batch, soft, *, layers, prompt_states=False):
        other = [1 - layer for layer in layers]
        return super().read_layers(batch, soft, layers=other, prompt_states=prompt_states)


class DeepVLMWithoutMask(DeepVLM):
    def read_layers(self, *arguments, **options):
        return VLMOutput(super().read_layers(*arguments, **options).hidden)


@dataclass
class Points:
    places: np.ndarray

    def save(self, path):
        """Write."""

    def preview(self, path):
        """Draw."""


class Generator:
    def __init__(self, weights="random"):
        self.accepts = STREAM

    def generate(self, stream, *, seed, progress=None, **options):
        draws = [torch.Generator().manual_seed(seed + k) for k in range(len(stream["patches"]))]
        return [Points(torch.randn(3, generator=draw).numpy()) for draw in draws]


class GeneratorWithoutSeed(Generator):
    def generate(self, stream, *, seed, progress=None, **options):
        return super().generate(stream, seed=3)


class GeneratorOfTheGlobalSeed(Generator):
    def generate(self, stream, *, seed, progress=None, **options):
        torch.manual_seed(seed)
        return [Points(torch.randn(3).numpy()) for _ in stream["patches"]]


class GeneratorOfOne(Generator):
    def generate(self, stream, *, seed, progress=None, **options):
        return super().generate(stream, seed=seed)[:1]


class GeneratorThatRefuses(Generator):
    def generate(self, stream, *, seed, progress=None, **options):
        raise GenerationError("decoder: no surface")


def encoder_spec(build, modality="image"):
    return EncoderSpec(name="toy", build=build, stream=STREAM, modality=modality)


def vlm_spec(build):
    return VLMSpec(name="toy", build=build, hidden_dim=8, max_positions=99)


def generator_spec(build, **fields):
    return GeneratorSpec(name="toy", build=build, accepts=STREAM, **fields)


def test_a_well_behaved_encoder_passes():
    check_encoder(encoder_spec(Encoder))


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (EncoderWithGradient, "with a gradient"),
        (EncoderOfInferenceTensors, "inference tensors"),
        (EncoderOfBatches, "depends on its batch"),
        (EncoderThatLeavesOutOfOne, "declared stream"),
        (EncoderOffItsSpace, "off the space"),
        (EncoderOfAnotherLayout, "declared stream"),
        (EncoderThatDraws, "global generator"),
        (EncoderBlindToImages, "same tokens"),
    ],
)
def test_a_broken_encoder_is_told_which_clause_it_breaks(broken, clause):
    with pytest.raises(ContractError, match=clause):
        check_encoder(encoder_spec(broken))


def test_an_encoder_of_points_is_given_points():
    check_encoder(encoder_spec(EncoderOfPoints, modality="points"))
    with pytest.raises(ContractError, match="same tokens"):
        check_encoder(encoder_spec(EncoderBlindToPoints, modality="points"))


def test_an_encoder_that_hides_its_modality_is_given_pictures():
    with pytest.raises(TypeError, match="Image"):
        check_encoder(encoder_spec(EncoderOfPoints))


def test_an_unknown_modality_is_refused():
    with pytest.raises(ContractError, match="'voxels' is not known; an encoder takes image or"):
        check_encoder(encoder_spec(Encoder, modality="voxels"))


def test_point_clouds_keep_the_ranges_that_are_promised():
    clouds = point_clouds()
    assert [cloud.shape for cloud in clouds] == [(2000, 6), (1500, 6), (3000, 6)]
    for cloud, again in zip(clouds, point_clouds(), strict=True):
        assert np.array_equal(cloud, again)
        assert cloud.dtype == np.float32
        assert np.abs(cloud[:, :3]).max() <= 1
        assert cloud[:, 3:].min() >= 0
        assert cloud[:, 3:].max() <= 1


@pytest.mark.parametrize("vlm", [VLM, DeepVLM])
def test_a_well_behaved_vlm_passes(vlm):
    check_vlm(vlm_spec(vlm))


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (VLMThatSeesPadding, "padding leaks"),
        (VLMThatLooksAhead, "not causal"),
        (VLMThatLearns, "freeze the model"),
        (VLMWithoutGradient, "detached"),
        (VLMDeafToPrompts, "read alike"),
        (VLMThatReadsNothing, "empty prompt"),
        (DeepVLMWithDirtyPadding, "not zero at padding"),
        (DeepVLMOfBatches, "different alone"),
        (DeepVLMOfAnotherLayer, "not what read has"),
        (DeepVLMWithoutMask, "without a mask"),
    ],
)
def test_a_broken_vlm_is_told_which_clause_it_breaks(broken, clause):
    with pytest.raises(ContractError, match=clause):
        check_vlm(vlm_spec(broken))


def test_a_vlm_that_is_meant_to_learn_passes_when_told_so():
    check_vlm(vlm_spec(VLMThatLearns), frozen=False)


def test_a_well_behaved_generator_passes():
    check_generator(generator_spec(Generator))


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (GeneratorWithoutSeed, "seed has no effect"),
        (GeneratorOfTheGlobalSeed, "global generator"),
        (GeneratorOfOne, "gave 1 assets"),
    ],
)
def test_a_broken_generator_is_told_which_clause_it_breaks(broken, clause):
    with pytest.raises(ContractError, match=clause):
        check_generator(generator_spec(broken))


def test_a_decoder_must_ignore_the_seed():
    check_generator(generator_spec(GeneratorWithoutSeed, decodes=True))
    with pytest.raises(ContractError, match="another seed gives another asset"):
        check_generator(generator_spec(Generator, decodes=True))


def test_a_generator_may_refuse_random_weights_only():
    check_generator(generator_spec(GeneratorThatRefuses))
    with pytest.raises(GenerationError):
        check_generator(generator_spec(GeneratorThatRefuses), weights="pretrained")


def test_pictures_differ_and_repeat():
    first, second = pictures(), pictures()
    assert [image.tobytes() for image in first] == [image.tobytes() for image in second]
    assert len({image.tobytes() for image in first}) == 3


def test_random_weights_are_the_same_in_every_check_and_the_global_state_is_kept():
    drawn = []

    def random(**options):
        drawn.append(float(torch.rand(())))
        return Encoder(**options)

    before = torch.get_rng_state()
    for _ in range(2):
        check_encoder(encoder_spec(random))
    assert drawn[0] == drawn[1]
    assert torch.equal(before, torch.get_rng_state())


def space_map(forward, inverse, one_way=False):
    twin = STREAM.model_copy(update={"space": "toy/twin"})
    return SpaceMap(
        name="toy",
        source_stream=STREAM,
        target_stream=twin,
        build=lambda **options: (forward, inverse),
        one_way=one_way,
    )


def scaled(factor):
    return lambda stream: {name: factor * tokens for name, tokens in stream.items()}


def test_maps_that_come_back_or_say_that_they_do_not_pass():
    check_space_map(space_map(scaled(2), scaled(0.5)))
    check_space_map(space_map(scaled(2), None, one_way=True))


@pytest.mark.parametrize(
    ("spec", "clause"),
    [
        (space_map(scaled(2), scaled(2)), "does not come back"),
        (space_map(scaled(2), None), "one_way is False, and the inverse is None"),
        (space_map(scaled(2), scaled(0.5), one_way=True), "one_way is True, and the inverse is th"),
        (space_map(lambda stream: {}, dict), "forward does not give the target's layout"),
    ],
)
def test_a_broken_map_is_told_which_clause(spec, clause):
    with pytest.raises(ContractError, match=clause):
        check_space_map(spec)


@pytest.mark.parametrize("name", ["dinov2-mini-reg-affine", "eva-clip-e14-plus-pooling"])
def test_registered_maps_keep_the_contract(name):
    check_space_map(installed().get("space_maps", name))
