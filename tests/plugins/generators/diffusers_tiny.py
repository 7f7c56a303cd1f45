"""Tiny random networks in the folders of the released ones, and the stock pipelines called bare.

Tokens have their real widths and numbers; everything behind them is as small as it runs.
"""

from __future__ import annotations

import json
from itertools import pairwise

import torch
from safetensors.torch import save_file


def save(folder, **parts):
    for name, part in parts.items():
        part.save_pretrained(folder / name)


def tiny_unet(**changes):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            **changes,
        }
    )


def tiny_vae(**changes):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **{
            "sample_size": 16,
            "block_out_channels": (8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            "latent_channels": 4,
            **changes,
        }
    )


def tiny_clip_vision(**changes):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 16, "image_size": 28, "patch_size": 14, "intermediate_size": 16}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**(sizes | heads | changes)))


def write_kandinsky(root):
    from diffusers import DDPMScheduler, VQModel

    unet = tiny_unet(
        out_channels=8,  # mean and variance
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        addition_embed_type="image",
        encoder_hid_dim=1280,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=8,
        resnet_time_scale_shift="scale_shift",
    )
    movq = VQModel(
        block_out_channels=[32, 32],  # its spatial norms have 32 groups
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    save(root / "kandinsky-2-2-decoder", unet=unet, movq=movq, scheduler=DDPMScheduler())
    save(root / "kandinsky-2-2-prior", image_encoder=tiny_clip_vision(projection_dim=1280))


def paint_kandinsky(generator, tokens, noise, steps, guidance):
    return generator.pipeline(
        image_embeds=tokens[:, 0],
        negative_image_embeds=generator.null,
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=noise,
    ).images[0]


def write_sdxl_eva(root, pooled=1792, cross=1792):
    from diffusers import EulerDiscreteScheduler

    unet = tiny_unet(
        cross_attention_dim=cross,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + 6 * 8,
    )
    parts = {"unet": unet, "vae": tiny_vae(), "scheduler": EulerDiscreteScheduler()}
    save(root / "diffusion-decoder", **parts)


def paint_sdxl_eva(generator, tokens, noise, steps, guidance):
    return generator.pipeline(
        prompt_embeds=tokens,
        pooled_prompt_embeds=tokens.mean(1),
        negative_prompt_embeds=torch.zeros(1, 64, 1792),
        negative_pooled_prompt_embeds=torch.zeros(1, 1792),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=noise,
    ).images[0]


def adapter_tensors(unet, width=64, queries=16):
    """An adapter under the names of the released file: `image_proj.` and `ip_adapter.`."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"image_proj.latents": (1, queries, width)}
    for name, fan_in in (("proj_in", 1280), ("proj_out", width)):
        shapes |= {
            f"image_proj.{name}.weight": (width, fan_in),
            f"image_proj.{name}.bias": (width,),
        }
    norms = ["norm_out"]
    for layer in (f"layers.{k}" for k in range(4)):
        norms += [f"{layer}.0.norm1", f"{layer}.0.norm2", f"{layer}.1.0"]
        for name, rows, columns in (
            ("0.to_q", width, width),
            ("0.to_kv", 2 * width, width),
            ("0.to_out", width, width),
            ("1.1", 4 * width, width),
            ("1.3", width, 4 * width),
        ):
            shapes[f"image_proj.{layer}.{name}.weight"] = (rows, columns)
    for name in norms:
        shapes |= {f"image_proj.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    cross = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(cross):
        rows = unet.get_submodule(name.removesuffix(".processor")).query_dim
        for kind in ("k", "v"):
            shapes[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = (rows, width)
    return {name: torch.randn(shape, generator=draw) / 8 for name, shape in shapes.items()}


def write_ip_adapter(root):
    from diffusers import PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    base, adapter = root / "stable-diffusion-v1-5", root / "IP-Adapter"
    unet = tiny_unet(cross_attention_dim=64)
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=4,
        bos_token_id=2,
        eos_token_id=3,
    )
    parts = {
        "unet": unet,
        "vae": tiny_vae(),
        "scheduler": PNDMScheduler(skip_prk_steps=True, steps_offset=1),
    }
    save(base, text_encoder=CLIPTextModel(text), **parts)
    (base / "tokenizer").mkdir()
    vocabulary = {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    (base / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (base / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (base / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    vision = tiny_clip_vision(
        hidden_size=1280, num_attention_heads=16, image_size=224, projection_dim=8
    )
    save(adapter / "models", image_encoder=vision)
    save_file(adapter_tensors(unet), adapter / "models" / "ip-adapter-plus_sd15.safetensors")


def paint_ip_adapter(generator, tokens, noise, steps, guidance):
    return generator.pipeline(
        prompt_embeds=generator.text,
        negative_prompt_embeds=generator.text,
        ip_adapter_image_embeds=[torch.stack([generator.null, tokens])],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=noise,
    ).images[0]


def tiny_flux(width=32, pooled=32):
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        pooled_projection_dim=pooled,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )


def tiny_flux_vae():
    return tiny_vae(
        latent_channels=1,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def write_flux_redux(root):
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = {"transformer": tiny_flux(), "vae": tiny_flux_vae(), "scheduler": scheduler}
    save(root / "FLUX.1-dev", **parts)
    # Large files of the released transformer are split, and an index says how.
    folder = root / "FLUX.1-dev" / "transformer"
    parts["transformer"].save_pretrained(folder, max_shard_size="20KB")
    (folder / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    embedder = ReduxImageEncoder(redux_dim=1152, txt_in_features=32)
    save(root / "FLUX.1-Redux-dev", image_embedder=embedder)


def paint_flux_redux(generator, tokens, noise, steps, guidance):
    embedded = generator.image_embedder(tokens).image_embeds
    return generator.pipeline(
        prompt_embeds=torch.cat([torch.zeros(1, 512, 32), embedded], dim=1),
        pooled_prompt_embeds=torch.zeros(1, 32),
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=noise,
    ).images[0]


def write_rae(root):
    from diffusers import AutoencoderRAE

    draw = torch.Generator().manual_seed(0)
    AutoencoderRAE(
        encoder_hidden_size=1024,
        encoder_num_hidden_layers=1,
        encoder_input_size=56,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        patch_size=4,
        latents_mean=torch.randn(1024, 4, 4, generator=draw),
        latents_std=1 + torch.rand(1024, 4, 4, generator=draw),
        scaling_factor=0.5,
    ).save_pretrained(root)


def marching_cubes_tables():
    """Triangles (256, 5, 3) over the 12 edges of a cube, and which are used, (256, 5).

    Written out from the cube itself: corner x + 2 y + 4 z, edges along x, y, z in this order.
    Around each face, the edge where a run of inner corners ends leads to the one where it began.
    """
    edges = {}
    for axis, (first, second) in enumerate(((2, 4), (1, 4), (1, 2))):
        for k, start in enumerate((0, first, second, first + second)):
            edges[frozenset((start, start + (1, 2, 4)[axis]))] = 4 * axis + k
    faces = []
    for axis in range(3):
        u, v = (1, 2, 4)[(axis + 1) % 3], (1, 2, 4)[(axis + 2) % 3]
        cycle = [0, u, u + v, v]
        faces += [[corner + (1, 2, 4)[axis] for corner in cycle], cycle[::-1]]
    cases = torch.zeros(256, 5, 3, dtype=torch.long)
    masks = torch.zeros(256, 5, dtype=torch.bool)
    for case in range(256):
        follows = {}
        for cycle in faces:
            inside = [bool(case >> corner & 1) for corner in cycle]
            for k in range(4):
                if inside[k] and not inside[(k + 1) % 4]:
                    begin = k
                    while inside[begin - 1]:
                        begin -= 1
                    leaving = frozenset((cycle[k], cycle[(k + 1) % 4]))
                    follows[edges[leaving]] = edges[frozenset((cycle[begin], cycle[begin - 1]))]
        triangles = []
        while follows:
            start, at = follows.popitem()
            loop = [start]
            while at != start:
                loop.append(at)
                at = follows.pop(at)
            triangles += [(loop[0], b, c) for b, c in pairwise(loop[1:])]
        for k, triangle in enumerate(triangles[:5]):  # the stock table has room for five
            cases[case, k], masks[case, k] = torch.tensor(triangle), True
    return cases, masks


def write_shap_e(root):
    from diffusers import HeunDiscreteScheduler, PriorTransformer
    from diffusers.pipelines.shap_e.renderer import ShapERenderer

    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=16,
        num_embeddings=32,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        embedding_proj_norm_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
        time_embed_dim=32,
        embedding_proj_dim=1024,
        clip_embed_dim=32,
    )
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=16, d_hidden=8
    )
    cases, masks = marching_cubes_tables()
    renderer.mesh_decoder.cases.copy_(cases)  # the released weights bring them too
    renderer.mesh_decoder.masks.copy_(masks)
    scheduler = HeunDiscreteScheduler(
        beta_schedule="exp",
        num_train_timesteps=1024,
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
        clip_sample_range=1.0,
    )
    save(root, prior=prior, shap_e_renderer=renderer, scheduler=scheduler)


WRITE = {
    "shap-e-img2img": write_shap_e,
    "sdxl-eva": write_sdxl_eva,
    "kandinsky-2.2": write_kandinsky,
    "ip-adapter": write_ip_adapter,
    "flux-redux": write_flux_redux,
    "rae-decoder": write_rae,
}
PAINT = {
    "sdxl-eva": paint_sdxl_eva,
    "kandinsky-2.2": paint_kandinsky,
    "ip-adapter": paint_ip_adapter,
    "flux-redux": paint_flux_redux,
}


def write(name, folder):
    """Seeds the global generator, from which networks are initialised, and puts it back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WRITE[name](folder)


def small(generator):
    """The generator itself; where it makes a size of its own choice, a small one."""
    if hasattr(generator, "size"):
        generator.size = 16
    if hasattr(generator, "grid_size"):
        generator.grid_size = 10
    return generator
