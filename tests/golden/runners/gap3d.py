"""Runners of the aligner's entries: networks, flow-matching loss, sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call

from modalign import (
    DiTConfig,
    FlowConfig,
    SamplerConfig,
    TokenGroup,
    TokenStream,
    TokenStreamSpec,
)
from modalign.models.dit import TokenStreamDiT, time_features
from modalign.models.released import from_released
from modalign.models.rotary import Extrapolation, rotary_table
from modalign.objectives.flow_matching import FlowMatching
from modalign.sampling import sample
from modalign.sampling.guidance import guided_velocity
from modalign.sampling.schedule import noise_levels, training_times
from modalign.sampling.solvers import euler
from tests.golden.case import Case

Outputs = dict[str, Tensor]


def dit_config(config: Mapping[str, Any]) -> DiTConfig:
    """The reference's own field names; both spellings occur (GAP3D, diffusers)."""
    return DiTConfig(
        hidden_size=config.get("dim") or config["hidden_size"],
        depth=config.get("n_layers") or config["num_layers"],
        num_heads=config.get("n_heads") or config["num_attention_heads"],
        num_kv_heads=config.get("n_kv_heads") or config.get("num_kv_heads"),
        multiple_of=config["multiple_of"],
        ffn_dim_multiplier=config["ffn_dim_multiplier"],
        norm_eps=config["norm_eps"],
    )


def condition_width(config: Mapping[str, Any]) -> int:
    width: int = config.get("latent_embedding_size") or config["cross_attention_dim"]
    return width


def gap3d_stream(
    config: Mapping[str, Any], grid: tuple[int, ...], space: str = "golden"
) -> TokenStreamSpec:
    dim, num_registers = config["in_channels"], config["num_register_tokens"]
    groups = [TokenGroup(name="cls", shape=(1,), dim=dim)]
    if num_registers:
        groups.append(TokenGroup(name="registers", shape=(num_registers,), dim=dim))
    groups.append(TokenGroup(name="patches", shape=grid, dim=dim))
    return TokenStreamSpec(space=space, groups=tuple(groups))


SHORT = {"cls": "cls", "registers": "reg", "patches": "patch"}
# What the released network calls its arguments.
NOISED = {"patch": "x", "cls": "noisy_sum", "reg": "noisy_regs"}


def to_stream(spec: TokenStreamSpec, released: Mapping[str, Tensor]) -> TokenStream:
    """(B, D), (B, K, D) and (B, D, H, W) as (B, K, D)."""
    stream = {}
    for group in spec.groups:
        tensor = released[SHORT[group.name]]
        stream[group.name] = (
            tensor.flatten(2).transpose(1, 2)
            if group.has_place
            else tensor.reshape(len(tensor), group.num_tokens, group.dim)
        )
    return stream


def from_stream(spec: TokenStreamSpec, stream: TokenStream) -> Outputs:
    released = {}
    for group in spec.groups:
        tokens = stream[group.name]
        if group.has_place:
            released["patch"] = tokens.transpose(1, 2).unflatten(2, group.shape)
        else:
            released[SHORT[group.name]] = tokens[:, 0] if group.name == "cls" else tokens
    return released


def released_head(
    case: Case, config: Mapping[str, Any], patches: Tensor
) -> tuple[TokenStreamDiT, TokenStreamSpec]:
    """The network of `config` with the entry's weights."""
    spec = gap3d_stream(config, tuple(patches.shape[2:]))
    head = TokenStreamDiT(spec, dit_config(config), condition_width(config))
    head.load_state_dict(from_released(case.state_dict, head))
    return head, spec


def named(inputs: Mapping[str, Tensor], prefix: str) -> Outputs:
    return {name.removeprefix(prefix): v for name, v in inputs.items() if name.startswith(prefix)}


def as_time(timestep: Tensor) -> Tensor:
    """Our time of a released timestep; float64 keeps the thousandths exact."""
    return 1 - timestep.double() / 1000


def leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[Outputs]:
    """Outputs of `modules` during the block, by name."""
    seen: Outputs = {}
    handles = [
        module.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
        for name, module in modules.items()
    ]
    yield seen
    for handle in handles:
        handle.remove()


def gradients(loss: Tensor, inputs: Outputs, weights: Outputs) -> Outputs:
    loss.backward()
    outputs = {f"grad_in.{name}": x.grad for name, x in inputs.items() if x.grad is not None}
    return outputs | {f"grad_w.{name}": w.grad for name, w in weights.items() if w.grad is not None}


def run_dit(case: Case) -> Outputs:
    inputs, config = case.inputs, case.config["config"]
    spec = gap3d_stream(config, tuple(inputs["x_patch"].shape[2:]))
    head = TokenStreamDiT(spec, dit_config(config), condition_width(config))
    weights = {name: leaf(tensor) for name, tensor in case.state_dict.items()}
    parameters = from_released(weights, head)
    x = {name: leaf(tensor) for name, tensor in named(inputs, "x_").items()}
    context, t = leaf(inputs["context"]), as_time(inputs["timestep"])

    def velocity(condition: Tensor, mask: Tensor | None = None) -> Outputs:
        arguments = (to_stream(spec, x), t, condition, mask)
        stream = functional_call(head, parameters, arguments)
        return {name: -tensor for name, tensor in from_stream(spec, stream).items()}

    watched: dict[str, nn.Module] = {
        "inter.caption_projection": head.condition_encoder.projection,
        "inter.timestep_embedder": head.time,
        "inter.patch_embedder": head.inputs[-1],
        "inter.block_0.ffn": head.blocks[0].feed_forward,
        "inter.block_0.self_attn": head.blocks[0].self_attention,
        "inter.block_0.cross_attn": head.blocks[0].cross_attention,
        "pooled": head.condition_encoder.pool,
        "norm_out": head.outputs[0],
    }
    watched |= {f"inter.block_{i}": block for i, block in enumerate(head.blocks)}
    watched |= {f"input.{i}": project for i, project in enumerate(head.inputs)}
    with recorded(watched) as seen:
        v = velocity(context)
    outputs = {f"v_{name}": tensor for name, tensor in v.items()}
    outputs |= {name: tensor for name, tensor in seen.items() if name.startswith("inter.")}
    tokens_in = torch.cat([seen[f"input.{i}"] for i in range(len(head.inputs))], dim=1)
    head_dim = head.config.hidden_size // head.config.num_heads
    outputs |= {
        "inter.time_proj": time_features(1000 * (1 - t)),
        "inter.temb": seen["inter.timestep_embedder"] + seen["pooled"],
        "inter.tokens_in": tokens_in,
        "inter.norm_out": -seen["norm_out"],
        "inter.rope_cos_sin": rotary_table(spec, head_dim)[None],
        # We attend among all tokens and therefore build no mask.
        "inter.self_mask": torch.ones(tokens_in.shape[:2], dtype=torch.int32),
    }
    loss = sum((v[name] * cot).sum() for name, cot in named(inputs, "cot_").items())
    outputs["loss_cotangent"] = loss
    leaves = {"context": context} | {f"x_{name}": tensor for name, tensor in x.items()}
    outputs |= gradients(loss, leaves, weights)
    with torch.no_grad():
        padded = velocity(context, inputs["context_mask_padded"])
        null = velocity(torch.zeros_like(context))
    outputs |= {f"padded.v_{name}": tensor for name, tensor in padded.items()}
    return outputs | {f"null.v_{name}": tensor for name, tensor in null.items()}


def run_grid(case: Case) -> Outputs:
    """BLIP3-o and Lumina: one grid of patches, cells of `patch_size` squared pixels."""
    inputs, config = case.inputs, case.config["config"]
    x, context, patch = leaf(inputs["x"]), leaf(inputs["context"]), config["patch_size"]
    _, channels, height, width = x.shape
    group = TokenGroup(
        name="patches", shape=(height // patch, width // patch), dim=channels * patch**2
    )
    spec = TokenStreamSpec(space="golden", groups=(group,))
    rope = case.config.get("rope", {})
    attention = case.config.get("cross_attention_kwargs", {})
    extrapolation = Extrapolation(
        linear=rope.get("linear_factor", 1.0),
        ntk=rope.get("ntk_factor", 1.0),
        base_tokens=attention.get("base_sequence_length"),
    )
    head = TokenStreamDiT(
        spec,
        dit_config(config),
        condition_width(config),
        project_condition="latent_embedding_size" in config,
        extrapolation=extrapolation,
    )
    weights = {name: leaf(tensor) for name, tensor in case.state_dict.items()}
    parameters = from_released(weights, head, patch_size=patch)
    t = as_time(inputs["timestep"])

    def velocity(condition: Tensor, mask: Tensor | None = None) -> Tensor:
        cells = F.pixel_unshuffle(x, patch)  # channels in (C, p, p) order
        stream = {"patches": cells.flatten(2).transpose(1, 2)}
        out = functional_call(head, parameters, (stream, t, condition, mask))["patches"]
        return -F.pixel_shuffle(out.transpose(1, 2).unflatten(2, group.shape), patch)

    tokens_in: list[Tensor] = []
    handle = head.inputs[0].register_forward_hook(lambda _m, _a, out: tokens_in.append(out))
    v = velocity(context, inputs.get("context_mask"))
    handle.remove()
    loss = (v * inputs["cot"]).sum()
    head_dim = head.config.hidden_size // head.config.num_heads
    table = rotary_table(spec, head_dim, extrapolation)
    outputs = {
        "v": v,
        "loss_cotangent": loss,
        "inter.tokens_in": tokens_in[0],
        "inter.rope_cos_sin": table[None],
        "rope_cos_sin": table,
    }
    outputs |= gradients(loss, {"x": x, "context": context}, weights)
    with torch.no_grad():
        if "context_mask_padded" in inputs:
            outputs["padded.v"] = velocity(context, inputs["context_mask_padded"])
        outputs["null.v"] = velocity(torch.zeros_like(context))
    return outputs


def run_flow_loss(case: Case) -> Outputs:
    inputs, config = case.inputs, case.config["dit_config"]
    head, spec = released_head(case, config, inputs["x1_patch"])
    long = {short: name for name, short in SHORT.items()}
    weights = {
        long[short]: weight
        for short, weight in case.config["weights"].items()
        if long[short] in spec.names
    }
    objective = FlowMatching(spec, FlowConfig(grid=1000), weights=weights)
    t = training_times(inputs["u"], objective.flow)
    calls: list[tuple[TokenStream, Tensor, Tensor, TokenStream]] = []

    def recording(x_t: TokenStream, t: Tensor, condition: Tensor) -> TokenStream:
        out = head(x_t, t, condition)
        calls.append((x_t, t, condition, out))
        return out

    losses = objective.losses(
        recording,
        inputs["context"],
        to_stream(spec, named(inputs, "x1_")),
        noise=to_stream(spec, named(inputs, "noise_")),
        t=t,
    )
    [(x_t, told, condition, out)] = calls
    x = from_stream(spec, x_t)
    outputs = {"loss": losses["loss"]}
    outputs |= {f"loss_{SHORT[name]}": losses[f"loss_{name}"] for name in spec.names}
    outputs |= {f"dit_out.v_{name}": -v for name, v in from_stream(spec, out).items()}
    outputs |= {f"dit_in.{NOISED[name]}": tensor for name, tensor in x.items()}
    return outputs | {"dit_in.timestep": 1000 * (1 - told), "dit_in.z_latents": condition}


def starting_noise(case: Case, name: str, batch: int) -> Outputs:
    """The noise that inputs give for a sampling case, or else what its seed draws."""
    prefixes = {key.rpartition("noise_")[0] for key in case.inputs if "noise_" in key}
    fitting = sorted((p for p in prefixes if name.startswith(p.rstrip("."))), key=len)
    for prefix in reversed(fitting):
        noise = named(case.inputs, f"{prefix}noise_")
        if all(len(tensor) == batch for tensor in noise.values()):
            return noise
    generator = torch.Generator().manual_seed(case.config["case_params"][name]["generator_seed"])
    shapes = {short: tuple(v.shape[1:]) for short, v in named(case.inputs, "noise_").items()}
    return {
        short: torch.randn((batch, *shapes[short]), generator=generator)
        for short in case.config["noise_draw_order"]
        if short in shapes
    }


def trajectory(
    head: TokenStreamDiT, condition: Tensor, noise: TokenStream, sampler: SamplerConfig
) -> tuple[list[TokenStream], list[TokenStream]]:
    """Every state of an Euler run, noise first, and every guided velocity."""
    velocity = guided_velocity(head, condition, FlowConfig(), sampler)
    states, velocities = [], []

    def recording(x: TokenStream, level: float) -> TokenStream:
        states.append(x)
        velocities.append(velocity(x, level))
        return velocities[-1]

    last = euler(recording, noise, noise_levels(sampler.steps))
    return [*states, last], velocities


@torch.no_grad()
def run_sampling(case: Case) -> Outputs:
    inputs, config = case.inputs, case.config["config"]
    head, spec = released_head(case, config, inputs["noise_patch"])
    outputs: Outputs = {}
    handoff: Tensor | None = None
    for name, params in case.config["case_params"].items():
        condition = inputs["context"].repeat_interleave(params["num_images_per_prompt"], dim=0)
        noise = to_stream(spec, starting_noise(case, name, len(condition)))
        sampler = SamplerConfig(
            steps=params["steps"],
            guidance=1.0 if params["guidance"] is None else params["guidance"],
            integer_time=True,
        )
        final = sample(head, spec, condition, flow=FlowConfig(), sampler=sampler, noise=noise)
        outputs |= {f"{name}.final_{part}": v for part, v in from_stream(spec, final).items()}
        if handoff is None:
            handoff = spec.pack(final)

        told: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _m, args, told=told: told.append(args[1][0]))
        states, velocities = trajectory(head, condition, noise, sampler)
        hook.remove()
        outputs[f"{name}.dit_timestep"] = (1000 * (1 - torch.stack(told))).float()
        for part in from_stream(spec, noise):
            outputs[f"{name}.traj_{part}"] = torch.stack(
                [from_stream(spec, x)[part] for x in states[1:]]
            )
            outputs[f"{name}.v_guided_{part}"] = torch.stack(
                [-from_stream(spec, v)[part] for v in velocities]
            )
    assert handoff is not None
    return outputs | {"handoff_tokens": handoff}


RUNNERS = {
    "gap3d.flow_loss": run_flow_loss,
    "gap3d.sampling": run_sampling,
    "gap3d.dit": run_dit,
    "gap3d.blip3o_dit": run_grid,
    "lumina.diffusers": run_grid,
}
