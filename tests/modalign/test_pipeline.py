"""A pipeline at work, on tiny parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from modalign import (
    BuildError,
    Example,
    GenerationError,
    Pipeline,
    Progress,
    Prompt,
    PromptError,
    ReadingConfig,
    VLMOutput,
    build,
)
from modalign.checkpoint import save_checkpoint
from modalign.testing import point_clouds
from tests.modalign import stubs


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    path = stubs.checkpoint(tmp_path / "stub.safetensors")
    return build("stub", weights=path, registry=stubs.registry())


def test_align_returns_the_encoder_s_layout_on_its_manifold(pipeline: Pipeline) -> None:
    stream = pipeline.align(["a mug", "a red chair"])
    stubs.STREAM.check(stream)
    tokens = stubs.STREAM.pack(stream)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(2, 7), atol=1e-3, rtol=0)


def test_one_prompt_may_be_given_bare(pipeline: Pipeline) -> None:
    bare = pipeline.align("a mug")
    for prompts in (["a mug"], [Prompt("a mug")], Prompt("a mug")):
        assert pipeline.align(prompts)["cls"].equal(bare["cls"])


def test_element_k_depends_on_its_own_seed_only(pipeline: Pipeline) -> None:
    both = pipeline.align(["a mug"] * 2, seed=5)
    alone = pipeline.align("a mug", seed=6)
    torch.testing.assert_close(both["patches"][1:], alone["patches"])
    assert not both["patches"][0].equal(both["patches"][1])


def test_the_seed_repeats_and_changes_the_asset(pipeline: Pipeline) -> None:
    (one,), (same,), (other,) = (pipeline.generate("a mug", seed=seed) for seed in (1, 1, 2))
    assert (one.vertices == same.vertices).all()
    assert (one.vertices != other.vertices).any()


def test_samples_are_those_of_consecutive_seeds(pipeline: Pipeline) -> None:
    several = pipeline.generate("a mug", seed=3, num_samples=2)
    (second,) = pipeline.generate("a mug", seed=4)
    torch.testing.assert_close(several[1].vertices, second.vertices)


def test_steps_and_guidance_override_the_recipe(pipeline: Pipeline) -> None:
    steps: list[Progress] = []
    default = pipeline.align("a mug")
    changed = pipeline.align("a mug", num_inference_steps=5, progress=steps.append)
    assert not changed["patches"].equal(default["patches"])
    assert [step.step for step in steps if step.stage == "alignment"] == [1, 2, 3, 4, 5]
    assert not pipeline.align("a mug", guidance_scale=1.0)["patches"].equal(default["patches"])


@pytest.mark.parametrize("prompts", [[], [""], "  ", ["a mug", "\n"]])
def test_no_prompt_and_empty_ones_are_refused(pipeline: Pipeline, prompts: list[str]) -> None:
    with pytest.raises(PromptError):
        pipeline.align(prompts)


def test_numbers_that_are_not_finite_are_charged_to_their_stage(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    class Broken(stubs.VLM):
        def read(self, batch, soft_tokens):
            return VLMOutput(torch.full((1, 3, 8), torch.nan))

    known = stubs.registry(vlm={"build": stubs.giving(Broken())})
    broken = build("stub", weights="random", registry=known)
    with pytest.raises(GenerationError, match="stage 'vision-language model' produced non-finite"):
        broken.generate("a mug")
    path = stubs.checkpoint(tmp_path / "huge.safetensors", scale=1e30)
    huge = build("stub", weights=path, registry=stubs.registry())
    with pytest.raises(GenerationError, match="stage 'alignment' produced non-finite"):
        huge.generate("a mug")


def test_a_recipe_without_a_generator_aligns_but_does_not_generate() -> None:
    recipe = stubs.RECIPE.derive(generator=None)
    pipeline = build(recipe, weights="random", registry=stubs.registry())
    stubs.STREAM.check(pipeline.align("a mug"))
    with pytest.raises(BuildError, match="no generator; use align"):
        pipeline.generate("a mug")


def test_a_batch_trains_head_and_soft_tokens_and_nothing_else(pipeline: Pipeline) -> None:
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "white")]
    examples = [Example(Prompt(f"prompt {k}"), image) for k, image in enumerate(pictures)]
    batch = pipeline.collate(examples)
    losses = pipeline(batch, generator=torch.Generator().manual_seed(0))
    losses["loss"].backward()
    trained = pipeline.trainable()
    assert "soft_tokens" in trained
    assert all(name == "soft_tokens" or name.startswith("head.") for name in trained)
    assert trained["soft_tokens"].grad.abs().sum() > 0


def test_targets_may_come_from_a_cache(pipeline: Pipeline) -> None:
    """A batch with the encoded stream gives the same losses as one with pictures."""
    examples = [Example(Prompt("a mug"), Image.new("RGB", (8, 8), "red"))]
    batch = pipeline.collate(examples)
    cached = {
        "prompt": batch["prompt"],
        "target": pipeline.parts.encoder.encode(batch["image"]),
    }
    one, two = (
        pipeline(given, generator=torch.Generator().manual_seed(0)) for given in (batch, cached)
    )
    assert one["loss"].equal(two["loss"])


def test_a_prompt_with_several_targets_is_read_once(pipeline: Pipeline) -> None:
    """Losses and gradients are those of the prompt given as often as there are targets."""
    picture = pipeline.collate([Example(Prompt("x"), Image.new("RGB", (8, 8), "red"))])["image"]
    stream = pipeline.parts.encoder.encode(picture)
    target = {name: torch.cat([tokens, -tokens, tokens]) for name, tokens in stream.items()}
    found = []
    for times in (1, 3):
        pipeline.zero_grad()
        prompt = pipeline.parts.vlm.prepare([Prompt("a mug")] * times)
        batch = {"prompt": prompt, "target": target}
        loss = pipeline(batch, generator=torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        found.append((loss, pipeline.soft_tokens.grad.clone()))
    torch.testing.assert_close(found[0], found[1])
    batch["target"] = {name: tokens[:2] for name, tokens in target.items()}
    with pytest.raises(ValueError, match="2 targets cannot be shared by 3 prompts"):
        pipeline(batch)


def test_an_encoder_of_points_trains_a_pipeline_too() -> None:
    """`collate` hands over what the encoder takes; the stub reads the mean of either."""
    points = {"modality": "points"}
    pipeline = build("stub", weights="random", registry=stubs.registry(encoder=points))
    clouds = point_clouds((30, 20))
    batch = pipeline.collate([Example(Prompt("a mug"), cloud) for cloud in clouds])
    torch.testing.assert_close(batch["image"][:, 0], torch.tensor([c.mean() for c in clouds]))
    losses = pipeline(batch, generator=torch.Generator().manual_seed(0))
    assert losses["loss"].isfinite()


def test_an_example_without_a_picture_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="needs the image"):
        pipeline.collate([Example(Prompt("a mug"))])


def reading_pipeline(**reading: object) -> Pipeline:
    known = stubs.registry(vlm={"build": stubs.giving(stubs.DeepVLM())})
    recipe = stubs.RECIPE.derive(reading=reading)
    torch.manual_seed(0)
    return build(recipe, weights="random", registry=known)


def test_the_last_layer_by_its_number_is_the_default() -> None:
    default, named = reading_pipeline(), reading_pipeline(layers=(2,))
    assert default.recipe.reading == ReadingConfig()
    assert named.condition("a mug").hidden.equal(default.condition("a mug").hidden)
    assert named.trainable().keys() == default.trainable().keys()


def test_the_mean_of_layers_is_the_mean() -> None:
    """Layer k of the stub adds k."""
    mean, first = reading_pipeline(layers=(0, 1, 2)), reading_pipeline(layers=(0,))
    torch.testing.assert_close(mean.condition("a").hidden, first.condition("a").hidden + 1)


def test_learned_pooling_is_trained_and_starts_as_the_mean_of_normalised_layers() -> None:
    pipeline = reading_pipeline(layers=(0, 2), pooling="learned")
    logits = pipeline.trainable()["layer_pooling.logits"]
    assert logits.shape == (2,)
    layers = [reading_pipeline(layers=(k,)).condition("a").hidden for k in (0, 2)]
    normal = [torch.nn.functional.layer_norm(states, (8,)) for states in layers]
    torch.testing.assert_close(pipeline.condition("a").hidden, (normal[0] + normal[1]) / 2)
    with torch.no_grad():
        logits.copy_(torch.tensor([0.0, 40.0]))
    torch.testing.assert_close(pipeline.condition("a").hidden, normal[1])


def test_learned_pooling_receives_a_gradient_and_travels_with_a_checkpoint(tmp_path: Path) -> None:
    class Slanted(stubs.DeepVLM):
        def read_layers(self, *arguments, **options):
            output = super().read_layers(*arguments, **options)
            ramp = torch.linspace(-1, 1, output.hidden.shape[-1])
            return VLMOutput(torch.stack([output.hidden[:, 0], output.hidden[:, 1] * ramp], 1))

    known = stubs.registry(vlm={"build": stubs.giving(Slanted())})
    recipe = stubs.RECIPE.derive(reading={"layers": (0, 2), "pooling": "learned"})
    pipeline = build(recipe, weights="random", registry=known)
    with torch.no_grad():
        for parameter in pipeline.head.parameters():  # gates start closed
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    example = Example(Prompt("a mug"), Image.new("RGB", (8, 8), "red"))
    losses = pipeline(pipeline.collate([example] * 8), torch.Generator().manual_seed(0))
    losses["loss"].backward()
    trained = pipeline.trainable()
    assert trained["layer_pooling.logits"].grad.abs().sum() > 0
    with torch.no_grad():
        trained["layer_pooling.logits"].copy_(torch.tensor([1.0, -1.0]))
    save_checkpoint(tmp_path / "own.safetensors", trained, recipe, pipeline.stream)
    again = build(recipe, weights=tmp_path / "own.safetensors", registry=known)
    assert again.condition("a").hidden.equal(pipeline.condition("a").hidden)


def test_the_prompt_s_own_states_join_the_condition_under_a_mask() -> None:
    pipeline = reading_pipeline(prompt_states=True)
    output = pipeline.condition(["ab", "abc"])
    assert output.hidden.shape == (2, 4 + 3, 8)
    assert output.mask.tolist() == [[1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 0, 1, 1, 1]]


def test_training_and_sampling_hide_the_padding_of_prompt_states() -> None:
    """A stub that writes nonsense into its padding gives the same losses and streams."""

    class Noisy(stubs.DeepVLM):
        def read_layers(self, *arguments, **options):
            output = super().read_layers(*arguments, **options)
            hidden = output.hidden.masked_fill(output.mask[:, None, :, None] == 0, 1e3)
            return VLMOutput(hidden, mask=output.mask)

    recipe = stubs.RECIPE.derive(reading={"prompt_states": True})
    example = Example(Prompt("ab"), Image.new("RGB", (8, 8), "red"))
    found = []
    for vlm in (stubs.DeepVLM(), Noisy()):
        known = stubs.registry(vlm={"build": stubs.giving(vlm)})
        pipeline = build(recipe, weights="random", registry=known)
        with torch.no_grad():
            draw = torch.Generator().manual_seed(0)
            for parameter in pipeline.trainable().values():
                parameter.normal_(std=0.2, generator=draw)
        batch = dict(pipeline.collate([example]))
        target = pipeline.parts.encoder.encode(batch.pop("image"))
        batch["target"] = {name: tokens.expand(3, -1, -1) for name, tokens in target.items()}
        loss = pipeline(batch, torch.Generator().manual_seed(0))["loss"]
        found.append((loss, pipeline.align(["ab", "abc"])["patches"]))
    torch.testing.assert_close(found[0], found[1])
