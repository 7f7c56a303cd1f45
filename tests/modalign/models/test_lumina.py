"""diffusers' LuminaNextDiT2DModel as a second implementation, with random sizes and weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.func import functional_call

from modalign.models.dit import TokenStreamDiT
from modalign.models.released import from_released
from modalign.models.rotary import rotary_table
from modalign.recipe import DiTConfig
from modalign.tokens import TokenGroup, TokenStreamSpec


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "multiplier", "learn_sigma"),
    [(4, 2, None, True), (2, 2, 1.3, False), (6, 1, None, False)],
)
def test_the_network_is_lumina_next(
    heads: int, kv_heads: int, multiplier: float | None, learn_sigma: bool
) -> None:
    from diffusers.models.transformers.lumina_nextdit2d import LuminaNextDiT2DModel

    generator = torch.Generator().manual_seed(heads)
    config = DiTConfig(
        hidden_size=12 * heads,
        depth=2,
        num_heads=heads,
        num_kv_heads=kv_heads,
        multiple_of=8,
        ffn_dim_multiplier=multiplier,
    )
    theirs = LuminaNextDiT2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=3,
        hidden_size=config.hidden_size,
        num_layers=2,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        multiple_of=8,
        ffn_dim_multiplier=multiplier,
        learn_sigma=learn_sigma,
        qk_norm=True,
        cross_attention_dim=20,
    ).requires_grad_(False)
    for parameter in theirs.parameters():
        parameter.normal_(std=0.2, generator=generator)
    group = TokenGroup(name="patches", shape=(4, 3), dim=12)
    stream = TokenStreamSpec(space="test", groups=(group,))
    ours = TokenStreamDiT(stream, config, 20, project_condition=False)
    weights = from_released(theirs.state_dict(), ours, patch_size=2)

    x = torch.randn(2, 3, 8, 6, generator=generator)
    context = torch.randn(2, 5, 20, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    clock = torch.tensor([3.25, 117.0])
    table = rotary_table(stream, 12)
    expected = theirs(
        x,
        clock,
        context,
        mask,
        image_rotary_emb=torch.view_as_complex(
            F.pad(table.view(4, 3, 6, 2), (0, 0, 0, 0, 0, 1, 0, 2))
        ),
        cross_attention_kwargs={},
        return_dict=False,
    )[0]
    tokens = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
    arguments = ({"patches": tokens}, 1 - clock.double() / 1000, context, mask)
    out = functional_call(ours, weights, arguments)["patches"]
    actual = -F.pixel_shuffle(out.transpose(1, 2).unflatten(2, group.shape), 2)
    torch.testing.assert_close(actual, expected, atol=3e-5, rtol=1e-4)
