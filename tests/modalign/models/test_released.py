"""The released layout: names from the reference's own list, conversion undone bit for bit."""

from __future__ import annotations

import pytest
import torch

from modalign.errors import WeightsError
from modalign.models.dit import TokenStreamDiT
from modalign.models.released import from_released, released_names, to_released
from modalign.recipe import DiTConfig
from modalign.tokens import TokenGroup, TokenStreamSpec

CONFIG = DiTConfig(hidden_size=24, depth=2, num_heads=2, multiple_of=8)
GROUPS = (
    TokenGroup(name="cls", shape=(1,), dim=4),
    TokenGroup(name="registers", shape=(3,), dim=4),
    TokenGroup(name="patches", shape=(2, 3), dim=4),
)


def head(*groups: TokenGroup) -> TokenStreamDiT:
    generator = torch.Generator().manual_seed(0)
    network = TokenStreamDiT(TokenStreamSpec(space="test", groups=groups or GROUPS), CONFIG, 8)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network


@pytest.mark.parametrize("prefix", ["", "model.", "model.dit.model."])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_conversion_is_undone_bit_for_bit(prefix: str, patch_size: int) -> None:
    network = head()
    own = network.state_dict()
    released = to_released(own, network, prefix=prefix, patch_size=patch_size)
    again = from_released(released, network, patch_size=patch_size)
    assert again.keys() == own.keys()
    assert all(again[name].equal(own[name]) for name in own)


def test_only_the_output_changes_sign() -> None:
    network = head()
    own, released = network.state_dict(), to_released(network.state_dict(), network)
    for ours, theirs in released_names(network).items():
        sign = -1 if theirs.startswith("norm_out.linear_2") else 1
        assert released[theirs].reshape(own[ours].shape).equal(sign * own[ours])


def test_names_and_shapes_are_those_of_the_release() -> None:
    released = {
        name: tuple(tensor.shape)
        for name, tensor in to_released(head().state_dict(), head(), prefix="model.").items()
    }
    assert len(released) == 2 * 26 + 24
    assert released["model.cls_role"] == (1, 24)
    assert released["model.reg_roles"] == (1, 3, 24)
    assert released["model.layers.1.attn2.to_out.0.weight"] == (24, 24)
    assert released["model.layers.0.gate"] == (2,)
    assert released["model.norm_out.linear_2.bias"] == (4,)


def test_rows_of_cells_go_from_channels_last_to_channels_first() -> None:
    network = head(TokenGroup(name="patches", shape=(2, 2), dim=12))  # 3 channels, 2 x 2 pixels
    released = to_released(network.state_dict(), network)
    pixel_then_channel = torch.arange(12.0)
    released["norm_out.linear_2.bias"] = pixel_then_channel
    bias = from_released(released, network, patch_size=2)["outputs.0.bias"]
    expected = -pixel_then_channel.view(4, 3).T.flatten()
    assert bias.equal(expected)


def test_missing_and_unexpected_tensors_are_listed() -> None:
    network = head()
    released = to_released(network.state_dict(), network)
    del released["layers.1.gate"]
    released["layers.2.gate"] = torch.zeros(2)
    with pytest.raises(
        WeightsError, match=r"some\.file .* missing layers\.1\.gate; unexpected layers\.2\.gate"
    ):
        from_released(released, network, origin="some.file")


def test_parts_of_a_whole_checkpoint_are_passed_over_and_an_unused_token_too() -> None:
    network = head()
    released = to_released(network.state_dict(), network, prefix="model.dit.model.")
    released["model.layers.0.mlp.weight"] = torch.zeros(1)
    assert from_released(released, network).keys() == network.state_dict().keys()
    plain = to_released(network.state_dict(), network) | {"pad_token": torch.zeros(24)}
    assert from_released(plain, network).keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    "groups",
    [
        (GROUPS[2], TokenGroup(name="a", shape=(2,), dim=4), TokenGroup(name="b", shape=(), dim=4)),
        (GROUPS[2], TokenGroup(name="cls", shape=(1,), dim=5)),
    ],
)
def test_layouts_that_were_never_released_are_refused(groups: tuple[TokenGroup, ...]) -> None:
    with pytest.raises(WeightsError, match="released layout"):
        released_names(head(*groups))
