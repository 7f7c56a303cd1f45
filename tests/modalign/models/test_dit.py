"""Expected numbers come from algebra, from a second path, or from the released network's counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modalign.models.dit import TokenStreamDiT
from modalign.models.rotary import Extrapolation, rotary_table, rotate
from modalign.recipe import DiTConfig
from modalign.recipes.blip3o import BLIP3O
from modalign.recipes.gap3d import GAP3D
from modalign.tokens import TokenGroup, TokenStream, TokenStreamSpec

SMALL = DiTConfig(hidden_size=48, depth=2, num_heads=4, num_kv_heads=2, multiple_of=16)
MIXED = TokenStreamSpec(
    space="test",
    groups=(
        TokenGroup(name="pooled", shape=(), dim=6),
        TokenGroup(name="queries", shape=(3,), dim=10),
        TokenGroup(name="patches", shape=(2, 4), dim=6),
    ),
)


def layout(*groups: tuple[str, tuple[int, ...], int]) -> TokenStreamSpec:
    return TokenStreamSpec(
        space="test", groups=tuple(TokenGroup(name=n, shape=s, dim=d) for n, s, d in groups)
    )


def small(stream: TokenStreamSpec = MIXED, **options: object) -> TokenStreamDiT:
    """A network without closed gates, so that every path matters."""
    generator = torch.Generator().manual_seed(0)
    head = TokenStreamDiT(stream, SMALL, 8, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return head


def noise(stream: TokenStreamSpec, batch: int = 3, seed: int = 1) -> TokenStream:
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randn(batch, group.num_tokens, group.dim, generator=generator)
        for group in stream.groups
    }


def inputs(batch: int = 3) -> tuple[TokenStream, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        noise(MIXED, batch),
        torch.rand(batch, generator=generator),
        torch.randn(batch, 5, 8, generator=generator),
    )


def same(actual: TokenStream, expected: TokenStream) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=2e-5, rtol=1e-4)


def count(stream: TokenStreamSpec, config: DiTConfig, condition_dim: int) -> int:
    with torch.device("meta"):
        head = TokenStreamDiT(stream, config, condition_dim)
    assert not list(head.buffers())
    return sum(parameter.numel() for parameter in head.parameters())


def test_gap3d_has_the_released_number_of_parameters() -> None:
    stream = layout(("cls", (1,), 1024), ("registers", (4,), 1024), ("patches", (37, 37), 1024))
    assert count(stream, GAP3D.head, 2048) == 1_363_187_104
    assert GAP3D.num_soft_tokens * 2048 == 131_072


@pytest.mark.parametrize(
    ("condition_dim", "expected"), [(2048, 1_362_257_824), (3584, 1_365_010_336)]
)
def test_blip3o_has_the_released_number_of_parameters(condition_dim: int, expected: int) -> None:
    assert count(layout(("patches", (8, 8), 1792)), BLIP3O.head, condition_dim) == expected


def test_any_layout_comes_back_with_its_own_shapes() -> None:
    x_t, t, condition = inputs()
    MIXED.check(small()(x_t, t, condition))


def test_a_prepared_condition_changes_nothing() -> None:
    head, (x_t, t, condition) = small(), inputs()
    expected = head(x_t, t, condition)
    prepared = head.prepare_condition(condition)
    same(head(x_t, t, prepared), expected)
    part = {name: tokens[1:] for name, tokens in x_t.items()}
    same(head(part, t[1:], prepared[1:]), {name: v[1:] for name, v in expected.items()})


def test_masked_positions_are_not_read() -> None:
    head, (x_t, t, condition) = small(), inputs()
    mask = torch.ones(3, 5, dtype=torch.bool)
    same(head(x_t, t, condition, mask), head(x_t, t, condition))
    mask[:, 3:] = False
    same(head(x_t, t, condition, mask), head(x_t, t, condition[:, :3]))
    same(head(x_t, t, condition, mask.long()), head(x_t, t, condition[:, :3]))


def test_samples_of_a_batch_do_not_meet() -> None:
    head, (x_t, t, condition) = small(), inputs()
    alone = head({name: v[:1] for name, v in x_t.items()}, t[:1], condition[:1])
    same(alone, {name: v[:1] for name, v in head(x_t, t, condition).items()})


def test_the_order_of_groups_is_only_a_convention() -> None:
    """Self-attention is symmetric: the same weights in another order predict the same."""
    head, (x_t, t, condition) = small(), inputs()
    order = (2, 0, 1)
    stream = TokenStreamSpec(space="test", groups=tuple(MIXED.groups[i] for i in order))
    other = small(stream)
    state = {name: v for name, v in head.state_dict().items() if not name.startswith("inputs")}
    for new, old in enumerate(order):
        for name, value in head.inputs[old].state_dict().items():
            state[f"inputs.{new}.{name}"] = value
    other.load_state_dict(state)
    actual = other({name: x_t[name] for name in stream.names}, t, condition)
    same({name: actual[name] for name in MIXED.names}, head(x_t, t, condition))


@pytest.mark.parametrize("changed", ["x_t", "t", "condition"])
def test_every_input_matters(changed: str) -> None:
    head, (x_t, t, condition) = small(), inputs()
    before = head(x_t, t, condition)
    after = head(
        noise(MIXED, seed=9) if changed == "x_t" else x_t,
        t / 2 if changed == "t" else t,
        condition.flip(1, 2) if changed == "condition" else condition,
    )
    for name, tokens in before.items():
        assert (tokens - after[name]).abs().max() > 1e-3


def test_recomputing_blocks_gives_the_same_gradients() -> None:
    head, (x_t, t, condition) = small(), inputs()
    gradients = []
    for recompute in (False, True):
        head.zero_grad()
        head.gradient_checkpointing = recompute
        torch.stack([v.square().mean() for v in head(x_t, t, condition).values()]).sum().backward()
        gradients.append({name: p.grad for name, p in head.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_double_precision_times_keep_a_small_step() -> None:
    """1 - t is 1000 t in thousandths: a float32 t near 1 would lose it."""
    head, (x_t, _, condition) = small(), inputs()
    exact = torch.full((3,), 1 - 1e-4, dtype=torch.float64)
    features = []
    head.time[0].register_forward_pre_hook(lambda _m, args: features.append(args[0]))
    head(x_t, exact, condition)
    expected = torch.cos(torch.tensor(0.1)).expand(3)
    torch.testing.assert_close(features[0][:, 0], expected, atol=1e-7, rtol=0)


def test_a_new_network_reads_the_condition_through_modulation_only() -> None:
    head = TokenStreamDiT(MIXED, SMALL, 8)
    assert all(not block.cross_gate.any() for block in head.blocks)
    roles = [p for name, p in head.named_parameters() if name.endswith("role")]
    assert [tuple(role.shape) for role in roles] == [(1, 48), (3, 48)]


def test_half_precision_runs() -> None:
    head, (x_t, t, condition) = small().bfloat16(), inputs()
    x_t = {name: tokens.bfloat16() for name, tokens in x_t.items()}
    out = head(x_t, t, condition.bfloat16())
    assert all(v.dtype == torch.bfloat16 and v.isfinite().all() for v in out.values())


def test_attention_sees_places_relative_to_each_other() -> None:
    """<R(a) q, R(b) k> depends on b - a only, in both axes."""
    stream = layout(("patches", (5, 6), 1))
    table = rotary_table(stream, 12)
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 12, generator=generator)
    place = (1, 30, 1, 12)
    q, k = (rotate(vector.expand(place), table).view(5, 6, 12) for vector in (query, key))
    first = (q[0, 1] * k[3, 2]).sum()
    torch.testing.assert_close((q[1, 4] * k[4, 5]).sum(), first, atol=1e-5, rtol=1e-5)
    assert abs((q[1, 4] * k[4, 4]).sum() - first) > 1e-3


def test_tokens_without_a_place_do_not_turn() -> None:
    table = rotary_table(MIXED, 12)
    assert table.shape == (12, 6, 2)
    assert table[:4].eq(torch.tensor([1.0, 0.0])).all()
    assert table[4].eq(torch.tensor([1.0, 0.0])).all()  # row 0, column 0
    assert not table[5:].eq(torch.tensor([1.0, 0.0])).all(dim=(1, 2)).any()


def test_the_compiled_form_of_rotation_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    table = rotary_table(MIXED, 12)
    x = torch.randn(2, 12, 4, 12, generator=torch.Generator().manual_seed(4))
    expected = rotate(x, table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, table), expected)


def test_extrapolation_changes_predictions_only_when_asked() -> None:
    (x_t, t, condition), plain = inputs(), small()
    expected = plain(x_t, t, condition)
    same(small(extrapolation=Extrapolation(base_tokens=12))(x_t, t, condition), expected)
    for setting in (Extrapolation(linear=2), Extrapolation(ntk=4), Extrapolation(base_tokens=3)):
        other = small(extrapolation=setting)(x_t, t, condition)
        assert (other["patches"] - expected["patches"]).abs().max() > 1e-3
