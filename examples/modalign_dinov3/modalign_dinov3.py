"""DINOv3 ViT-S+/16 as a target encoder: what a plugin author writes."""

import numpy as np
import torch

from modalign import EncoderSpec, TokenGroup, TokenStreamSpec, hookimpl

SHAPES = {"cls": (1,), "registers": (4,), "patches": (14, 14)}
GROUPS = tuple(TokenGroup(name=name, shape=shape, dim=384) for name, shape in SHAPES.items())
STREAM = TokenStreamSpec(space="dinov3-vits16plus/layernorm@224", groups=GROUPS)


class DinoV3:
    stream = STREAM

    def __init__(self, weights="pretrained", device="cpu", dtype=torch.float32):
        import timm

        name = "vit_small_plus_patch16_dinov3"
        source = {"pretrained": {"pretrained": True}, "random": {}}
        options = source.get(weights, {"checkpoint_path": str(weights)})
        self.model = timm.create_model(name, **options).to(device, dtype).eval()
        self.model.norm = torch.nn.Identity()

    def prepare(self, images):
        resized = [np.asarray(image.convert("RGB").resize((224, 224), 3)) for image in images]
        pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        return (pixels - mean) / std

    @torch.no_grad()
    def encode(self, batch):
        tokens = self.model.forward_features(batch.to(next(self.model.parameters())))
        return STREAM.split(torch.nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-9))


@hookimpl
def modalign_encoders():
    source, licence = "facebook/dinov3-vits16plus-pretrain-lvd1689m", "DINOv3 License (gated)"
    about = dict(summary="DINOv3 ViT-S+/16", requires=("timm",), source=source, license=licence)
    return [EncoderSpec(name="dinov3-vits16plus", build=DinoV3, stream=STREAM, **about)]
