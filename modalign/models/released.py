"""The released layout of the network (GAP3D, BLIP3-o, Lumina-Next): its names, signs and orders.

The released network predicts noise - data at a time that runs from data to noise; conversion flips
the sign of the output here, and nowhere else, and `TokenStreamDiT` flips the clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from modalign.errors import WeightsError
from modalign.models.dit import TokenStreamDiT

# Ours on the left; within one block, without ".weight" and ".bias".
_BLOCK_NAMES = {
    "blocks.{}.modulation": "layers.{}.norm1.linear",
    "blocks.{}.attention_norm": "layers.{}.norm1.norm",
    "blocks.{}.self_attention.to_q": "layers.{}.attn1.to_q",
    "blocks.{}.self_attention.to_k": "layers.{}.attn1.to_k",
    "blocks.{}.self_attention.to_v": "layers.{}.attn1.to_v",
    "blocks.{}.self_attention.norm_q": "layers.{}.attn1.norm_q",
    "blocks.{}.self_attention.norm_k": "layers.{}.attn1.norm_k",
    "blocks.{}.cross_attention.to_q": "layers.{}.attn2.to_q",
    "blocks.{}.cross_attention.norm_q": "layers.{}.attn2.norm_q",
    "condition_encoder.context.{}.to_k": "layers.{}.attn2.to_k",
    "condition_encoder.context.{}.to_v": "layers.{}.attn2.to_v",
    "condition_encoder.context.{}.norm_k": "layers.{}.attn2.norm_k",
    "condition_encoder.context.{}.norm": "layers.{}.norm1_context",
    "blocks.{}.cross_gate": "layers.{}.gate",
    "blocks.{}.attention_out": "layers.{}.attn2.to_out.0",
    "blocks.{}.attention_out_norm": "layers.{}.norm2",
    "blocks.{}.feed_forward_norm": "layers.{}.ffn_norm1",
    "blocks.{}.feed_forward.gate": "layers.{}.feed_forward.linear_1",
    "blocks.{}.feed_forward.down": "layers.{}.feed_forward.linear_2",
    "blocks.{}.feed_forward.up": "layers.{}.feed_forward.linear_3",
    "blocks.{}.feed_forward_out_norm": "layers.{}.ffn_norm2",
}
_OTHER_NAMES = {
    "time.0": "time_caption_embed.timestep_embedder.linear_1",
    "time.2": "time_caption_embed.timestep_embedder.linear_2",
    "condition_encoder.pool.0": "time_caption_embed.caption_embedder.0",
    "condition_encoder.pool.1": "time_caption_embed.caption_embedder.1",
    "condition_encoder.projection.0": "caption_projection.linear_1",
    "condition_encoder.projection.2": "caption_projection.linear_2",
    "output_modulation": "norm_out.linear_1",
    "outputs.0": "norm_out.linear_2",
}
_UNUSED = ("pad_token",)  # of Lumina's release: stored, never read


def released_names(head: TokenStreamDiT) -> dict[str, str]:
    """Released name of every parameter of `head`, keyed by ours, without the "model." in front.

    Raises:
        WeightsError: the released layout has no name for a group: it knows one grid of patches,
            "cls" and one more group without a place (registers).
    """
    table = dict(_OTHER_NAMES)
    for index in range(head.config.depth):
        table |= {ours.format(index): theirs.format(index) for ours, theirs in _BLOCK_NAMES.items()}
    for index, group in enumerate(head.stream.groups):
        if group.has_place:
            table[f"inputs.{index}.projection"] = "patch_embedder.proj"
        else:
            short = "cls" if group.name == "cls" else "reg"
            table[f"inputs.{index}.projection"] = f"{short}_embed"
            table[f"inputs.{index}.role"] = f"{short}_role{'' if short == 'cls' else 's'}"
    names = {}
    for ours, _ in head.named_parameters():
        stem, _, leaf = ours.rpartition(".")
        if ours in table:
            names[ours] = table[ours]
        elif stem in table and leaf in ("weight", "bias"):
            names[ours] = f"{table[stem]}.{leaf}"
        else:
            raise WeightsError(f"the released layout has no place for parameter {ours!r}")
    if len(set(names.values())) != len(names):
        raise WeightsError(
            f"the released layout cannot tell the groups {head.stream.names} apart: it knows one "
            "grid, 'cls' and one more group without a place"
        )
    return names


def from_released(
    state: Mapping[str, Tensor],
    head: TokenStreamDiT,
    *,
    patch_size: int = 1,
    origin: str = "released checkpoint",
) -> dict[str, Tensor]:
    """Parameters of `head` out of a state dict in the released layout (GAP3D, BLIP3-o, Lumina).

    Names may start with "model.dit.model.", "model." or nothing; parts of a whole checkpoint that
    are not the network's are passed over. Output projections are negated, because the released
    network predicts noise - data; with `patch_size` p their rows go from (p, p, C) to (C, p, p)
    order, that of the inputs. Exact, and undone by `to_released`. `head` may be on the meta device.

    Raises:
        WeightsError: tensors of the network are missing or left over; the message lists them.
    """
    prefix = next(
        (known for known in ("model.dit.model.", "model.") if f"{known}layers.0.gate" in state), ""
    )
    found = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and name not in _UNUSED
    }
    names = released_names(head)
    faults = (
        listing("missing", sorted(set(names.values()) - set(found))),
        listing("unexpected", sorted(set(found) - set(names.values()))),
    )
    if any(faults):
        raise WeightsError(
            f"{origin} does not hold this network: {'; '.join(filter(None, faults))}"
        )
    converted = {}
    for ours, theirs in names.items():
        tensor = found[theirs]
        if ours.endswith(".role"):
            tensor = tensor.reshape(-1, tensor.shape[-1])
        if ours.startswith("outputs."):
            tensor = -_to_channels_first(tensor, patch_size)
        converted[ours] = tensor
    return converted


def to_released(
    state: Mapping[str, Tensor], head: TokenStreamDiT, *, prefix: str = "", patch_size: int = 1
) -> dict[str, Tensor]:
    """The released layout of parameters of `head`: the inverse of `from_released`, bit for bit."""
    converted = {}
    for ours, theirs in released_names(head).items():
        tensor = state[ours]
        if theirs == "reg_roles":
            tensor = tensor[None]
        if ours.startswith("outputs."):
            tensor = -_to_channels_last(tensor, patch_size)
        converted[prefix + theirs] = tensor
    return converted


def _to_channels_first(rows: Tensor, patch_size: int) -> Tensor:
    """Rows in (C, p, p) order from (p, p, C)."""
    cells = patch_size * patch_size
    return rows.reshape(cells, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def _to_channels_last(rows: Tensor, patch_size: int) -> Tensor:
    """Rows in (p, p, C) order from (C, p, p)."""
    cells = patch_size * patch_size
    return rows.reshape(-1, cells, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def listing(what: str, names: list[str], most: int = 5) -> str:
    """`what` and the first of `names`, or nothing if there are none."""
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what} {', '.join(names[:most])}{more}"
