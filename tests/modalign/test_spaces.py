"""Spaces: which are joined, and why others are not."""

from __future__ import annotations

import pytest
import torch

from modalign import SpaceMap, TokenGroup, TokenStreamSpec
from modalign.spaces import refusal, route

GROUPS = (
    TokenGroup(name="cls", shape=(1,), dim=6),
    TokenGroup(name="patches", shape=(2, 2), dim=6),
)


def spec(space: str, groups: tuple[TokenGroup, ...] = GROUPS) -> TokenStreamSpec:
    return TokenStreamSpec(space=space, groups=groups)


def draw(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    packed = 3 + 2 * torch.randn(2, 5, 6, generator=generator)
    return spec("test/any").split(packed)


def scaling(factor: float, source: TokenStreamSpec, target: TokenStreamSpec) -> SpaceMap:
    def times(by: float):
        return lambda stream: {name: by * tokens for name, tokens in stream.items()}

    return SpaceMap(
        name=f"times-{factor}",
        source_stream=source,
        target_stream=target,
        build=lambda **options: (times(factor), times(1 / factor)),
    )


def pooling(source: TokenStreamSpec, target: TokenStreamSpec) -> SpaceMap:
    def pool(stream):
        return {"patches": stream["patches"].mean(1, keepdim=True)}

    return SpaceMap(
        name="pool",
        summary="mean of all patches",
        source_stream=source,
        target_stream=target,
        build=lambda **options: (pool, None),
        one_way=True,
    )


def test_equal_spaces_are_joined_by_nothing() -> None:
    way = route(spec("a/layernorm@28"), spec("a/layernorm@28"), [])
    assert way is not None
    assert (way.maps, way.one_way, way.words) == ((), False, "the same space")
    stream = draw()
    carried = way.build()(stream)
    assert all(carried[name] is stream[name] for name in stream)


@pytest.mark.parametrize(
    ("space", "why"),
    [
        ("a/affine@28", "'layernorm' and 'affine' tokens are other numbers"),
        ("a/layernorm@56", "the same network at another resolution"),
        ("b/layernorm@28", "'a' and 'b' are different networks"),
    ],
)
def test_another_encoder_normalisation_or_resolution_is_another_space(space: str, why: str) -> None:
    ends = spec("a/layernorm@28"), spec(space)
    assert route(*ends, []) is None
    assert why in refusal(*ends)


def test_groups_can_be_dropped_and_what_is_kept_is_untouched() -> None:
    way = route(spec("a/layernorm@28"), spec("a/layernorm@28", GROUPS[1:]), [])
    assert way is not None
    assert (way.one_way, way.words) == (True, "drops cls")
    stream = draw()
    carried = way.build()(stream)
    assert list(carried) == ["patches"]
    assert carried["patches"] is stream["patches"]


@pytest.mark.parametrize(
    "groups",
    [(*GROUPS, TokenGroup(name="registers", shape=(4,), dim=6)), GROUPS[::-1]],
    ids=["added", "in another order"],
)
def test_groups_cannot_be_added_or_reordered(groups) -> None:
    ends = spec("a/layernorm@28"), spec("a/layernorm@28", groups)
    assert route(*ends, []) is None
    assert "groups can be dropped, not added" in refusal(*ends)


def test_a_map_joins_in_both_directions_and_comes_back() -> None:
    one, other = spec("a/x"), spec("b/y")
    doubling = scaling(2, one, other)
    there, back = route(one, other, [doubling]), route(other, one, [doubling])
    assert there is not None
    assert back is not None
    assert not there.one_way
    assert (there.words, back.words) == ("times-2", "inverse of times-2")
    stream = draw()
    carried = there.build()(stream)
    assert all(carried[name].equal(2 * stream[name]) for name in stream)
    assert all(back.build()(carried)[name].equal(stream[name]) for name in stream)


def test_maps_are_chained_by_the_shortest_way() -> None:
    """a-b-c-d and a-d: the direct map is taken; without it, the three in turn."""
    spaces = [spec(f"{name}/x") for name in "abcd"]
    chain = [scaling(2, *pair) for pair in zip(spaces, spaces[1:], strict=False)]
    direct = scaling(5, spaces[0], spaces[-1])
    stream = draw()
    for maps, factor in ((chain, 8), ([*chain, direct], 5)):
        way = route(spaces[0], spaces[-1], maps)
        assert way is not None
        assert way.build()(stream)["cls"].equal(factor * stream["cls"])


def test_a_one_way_map_says_so_and_is_never_reversed() -> None:
    one = spec("a/x")
    pooled = spec("a/x-pooled", (TokenGroup(name="patches", shape=(1, 1), dim=6),))
    maps = [pooling(one, pooled)]
    way = route(one, pooled, maps)
    assert way is not None
    assert (way.one_way, way.words) == (True, "mean of all patches")
    assert way.build()(draw())["patches"].shape == (2, 1, 6)
    assert route(pooled, one, maps) is None


def test_a_map_is_built_with_the_options_of_its_parts() -> None:
    asked = {}

    def build(**options):
        asked.update(options)
        return dict, dict

    ends = spec("a/x"), spec("b/x")
    plain = SpaceMap(name="plain", source_stream=ends[0], target_stream=ends[1], build=build)
    way = route(*ends, [plain])
    assert way is not None
    way.build(weights="random", device="meta")
    assert asked == {"weights": "random", "device": "meta"}
