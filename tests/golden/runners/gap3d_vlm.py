"""Runners of entries that start at prompts or pictures: collator, soft tokens, targets, a step."""

from __future__ import annotations

from typing import Any, cast

import torch
from modalign_plugins.encoders.dinov2 import Dinov2Encoder
from modalign_plugins.vlms.qwen_vl import QwenVL, soft_index
from modalign_plugins.vlms.qwen_vl_prompts import (
    PictureSize,
    QwenVLPrompts,
    TokenIds,
    pad_right,
    started,
)
from modalign_plugins.weights import sources
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from modalign import FlowConfig, TokenStreamSpec
from modalign.models.dit import TokenStreamDiT
from modalign.models.released import from_released
from modalign.objectives.flow_matching import FlowMatching
from modalign.recipes.gap3d import GAP3D
from modalign.sampling.schedule import training_times
from tests.golden.case import Case, numbered
from tests.golden.runners.gap3d import (
    NOISED,
    SHORT,
    Outputs,
    condition_width,
    dit_config,
    from_stream,
    gap3d_stream,
    leaf,
    named,
    to_stream,
)

NORMED = "golden/layernorm"
FROZEN_PARTS = ("model.embed_tokens.", "model.layers.", "model.norm.", "visual.", "lm_head.")


def run_collator(case: Case) -> Outputs:
    config, inputs = case.config, case.inputs
    num_soft, start, soft = config["n_query"], config["image_start_id"], config["soft_token_id"]
    limit = config["model_max_length"] - num_soft - 1
    names = numbered({name.partition(".")[0] for name in inputs})
    rows = [started(inputs[f"{name}.input_ids"].tolist(), limit, start) for name in names]
    labels = [started(inputs[f"{name}.labels"].tolist(), limit, start) for name in names]
    prefix = pad_right([[1] * len(row) for row in rows], 0)
    index = soft_index(prefix, num_soft)

    def with_soft(rows: list[list[int]], padding: int) -> Tensor:
        room = pad_right([*rows, [0] * (prefix.shape[1] + num_soft)], padding)[:-1]
        return room.scatter(1, index, soft)

    whole = prefix.shape[1] + num_soft
    seen = torch.arange(whole) < prefix.sum(1, keepdim=True) + num_soft
    return {
        "input_ids": with_soft(rows, config["pad_id"]),
        "labels": with_soft(labels, config["ignore_index"]),
        "attention_mask": seen.to(torch.uint8),
        "i_s_pos": index[:, 0],
    }


def adapter_of(case: Case, positions: Any = "reference") -> QwenVL:
    """The adapter around the entry's model; ids come tokenised, so there is no tokenizer."""
    config = Qwen2_5_VLConfig(**case.config["vlm"])
    tensors = {k: v for k, v in case.state_dict.items() if k.startswith(FROZEN_PARTS)}
    model = sources.load_frozen(
        Qwen2_5_VLForConditionalGeneration,
        config,
        tensors,
        owner=case.path,
        device="cpu",
        dtype=torch.float32,
    )
    ids = case.config["ids"]
    placed = TokenIds(
        pad=ids["pad"],
        start=ids["image_start"],
        image_pad=ids["und_image_pad"],
        vision_start=ids["vision_start"],
        vision_end=ids["vision_end"],
    )
    prompts = QwenVLPrompts(cast(Any, None), placed, PictureSize(side=0), max_prompt_tokens=0)
    table = case.state_dict["model.embed_tokens.weight"]
    start = table[placed.start]  # as a checkpoint of the reference carries it
    return QwenVL(model, prompts, positions=positions, start_embedding=start)


def prefix_of(case: Case) -> dict[str, Tensor]:
    """The batch our adapter prepares: the reference's rows without their soft tokens."""
    inputs = case.inputs
    ids, lengths = inputs["input_ids"], inputs["i_s_pos"]
    room = ids.shape[1] - case.config["n_query"]
    mask = (torch.arange(room) < lengths[:, None]).long()
    batch = {
        "input_ids": ids[:, :room].where(mask.bool(), torch.tensor(case.config["ids"]["pad"])),
        "attention_mask": mask,
    }
    pictures = ("pixel_values", "image_grid_thw")
    return batch | {name: inputs[name] for name in pictures if name in inputs}


def target_stream(case: Case, raw: Tensor) -> tuple[TokenStreamSpec, Outputs]:
    """The stub encoder's stream: raw tokens (B, N, D), each put through an affine-free norm.

    How many registers there are and what grid the patches make, the entry's own targets say.
    """
    targets = named(case.inputs | case.expected, "target_")
    registers = targets["reg"].shape[1] if "reg" in targets else 0
    widths = {"in_channels": raw.shape[2], "num_register_tokens": registers}
    spec = gap3d_stream(widths, tuple(targets["patch"].shape[2:]), NORMED)
    return spec, spec.project(spec.split(raw))


def run_soft_tokens(case: Case) -> Outputs:
    adapter, batch, inputs = adapter_of(case), prefix_of(case), case.inputs
    soft = leaf(case.state_dict["model.latent_queries"])
    hidden = adapter.read(batch, soft).hidden
    whole, index = adapter.whole(batch, soft, output_hidden_states=True)
    before: list[Tensor] = []
    norm = adapter.model.model.language_model.norm
    handle = norm.register_forward_hook(lambda _m, arguments, _o: before.append(arguments[0]))
    adapter.read(batch, soft)
    handle.remove()
    outputs = {
        "soft_hidden": hidden,
        "soft_hidden_before_final_norm": before[-1],
        "last_hidden_state": whole.last_hidden_state,
        "all_hidden": torch.stack(whole.hidden_states),
        "inputs_embeds": adapter.whole_embeddings(batch, soft)[0],
    }
    torch.testing.assert_close(adapter.read_plain(batch, soft).hidden, hidden)
    if "cot_soft" in inputs:
        (hidden * inputs["cot_soft"]).sum().backward()
        assert soft.grad is not None
        outputs["grad_latent_queries"] = soft.grad
    if "target_features_raw" in inputs:
        spec, stream = target_stream(case, inputs["target_features_raw"])
        outputs |= {f"target_{k}": v for k, v in from_stream(spec, stream).items()}
    if "pixel_values" in inputs:
        native = adapter_of(case, positions="native")
        outputs["image_embeds"] = native.picture_features(batch)
        outputs["stock_mrope.soft_hidden"] = native.read(batch, soft).hidden
        # Places of padding differ between versions of transformers; the entry brings its own.
        places = inputs["mrope_position_ids"]
        stock, _ = native.whole(batch, soft, places=places)
        outputs["stock_mrope.last_hidden_state"] = stock.last_hidden_state
    return outputs


def run_dinov2_target(case: Case) -> Outputs:
    config, inputs = case.config["config"], case.inputs
    sizes = {
        "hidden_size": config["embed_dim"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["num_heads"],
        "mlp_ratio": config["mlp_ratio"],
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "num_register_tokens": config["num_register_tokens"],
        "use_swiglu_ffn": config["ffn_layer"].startswith("swiglu"),
    }
    side, dim = config["img_size"] // config["patch_size"], config["embed_dim"]
    widths = {"in_channels": dim, "num_register_tokens": config["num_register_tokens"]}
    spec = gap3d_stream(widths, (side, side), NORMED)
    encoder = Dinov2Encoder(sizes, spec, tensors=case.state_dict)
    raw = encoder.raw_tokens(inputs["pixel_values"])
    stream = encoder.encode(inputs["pixel_values"])
    outputs = {
        "features": spec.pack(stream),
        "x_prenorm": raw,
        "x_norm_clstoken": encoder.model.layernorm(raw)[:, 0],
    }
    if "pixel_values_nonsquare" in inputs:
        outputs["nonsquare_features"] = encoder.tokens(inputs["pixel_values_nonsquare"])
    return outputs | {f"target_{k}": v for k, v in from_stream(spec, stream).items()}


def run_train_step(case: Case) -> Outputs:
    inputs, config = case.inputs, case.config["dit_config"]
    adapter = adapter_of(case)
    soft = leaf(case.state_dict["model.latent_queries"])
    hidden = adapter.read(prefix_of(case), soft).hidden
    condition = hidden * (1 - inputs["drop_mask"])[:, None, None]

    spec, target = target_stream(case, inputs["target_features_raw"])
    head = TokenStreamDiT(spec, dit_config(config), condition_width(config))
    released = {k: leaf(v) for k, v in case.state_dict.items() if k.startswith("model.dit.model.")}
    parameters = from_released(released, head)
    # The entry names its weights in a sentence only; they are the recipe's unless it gives numbers.
    weights = GAP3D.objective.options["weights"] | {
        name: case.config["weights"][short]
        for name, short in SHORT.items()
        if short in case.config.get("weights", {})
    }
    weights = {name: weights[name] for name in spec.names}
    objective = FlowMatching(spec, FlowConfig(grid=GAP3D.flow.grid), weights=weights)
    t = training_times(inputs["u"], objective.flow)
    calls: list[tuple[Any, Tensor, Any]] = []

    def network(x_t: Any, t: Tensor, condition: Tensor) -> Any:
        out = torch.func.functional_call(head, parameters, (x_t, t, condition))
        calls.append((x_t, t, out))
        return out

    noise = to_stream(spec, named(inputs, "noise_"))
    losses = objective.losses(network, condition, target, noise=noise, t=t)
    losses["loss"].backward()
    [(x_t, told, out)] = calls
    x, v = from_stream(spec, x_t), from_stream(spec, out)
    assert soft.grad is not None
    outputs = {
        "loss": losses["loss"],
        "dit_in.timestep": 1000 * (1 - told),
        "dit_in.z_latents": condition,
        "sigmas": 1 - t,
        "timesteps": 1000 * (1 - t),
        "grad.latent_queries": soft.grad,
    }
    outputs |= {f"loss_{SHORT[name]}": losses[f"loss_{name}"] for name in spec.names}
    outputs |= {f"dit_in.{NOISED[name]}": tensor for name, tensor in x.items()}
    outputs |= {f"dit_out.v_{name}": -tensor for name, tensor in v.items()}
    for name, weight in released.items():
        if weight.grad is not None:
            outputs[f"grad_{name.removeprefix('model.')}"] = weight.grad
    return outputs


RUNNERS = {
    "gap3d.collator": run_collator,
    "gap3d.soft_tokens": run_soft_tokens,
    "gap3d.dinov2_target": run_dinov2_target,
    "gap3d.train_step": run_train_step,
}
