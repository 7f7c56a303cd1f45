"""Which networks the files of a pipeline may describe, and how they are made of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modalign import WeightsError

from .config import ModelFile
from .gaussians import SLatGaussianDecoder
from .layers import SparseConv3d
from .radiance_field import SLatRadianceFieldDecoder
from .slat_flow import SLatFlowModel
from .slat_vae import SLatEncoder, SLatMeshDecoder
from .structure_flow import SparseStructureFlowModel
from .structure_vae import SparseStructureDecoder, SparseStructureEncoder

# "Elastic" classes are the same networks with a training-time memory scheme around them.
CLASSES: dict[str, Callable[..., nn.Module]] = {
    "SparseStructureFlowModel": SparseStructureFlowModel,
    "SparseStructureDecoder": SparseStructureDecoder,
    "SparseStructureEncoder": SparseStructureEncoder,
    "SLatFlowModel": SLatFlowModel,
    "ElasticSLatFlowModel": SLatFlowModel,
    "SLatMeshDecoder": SLatMeshDecoder,
    "ElasticSLatMeshDecoder": SLatMeshDecoder,
    "SLatGaussianDecoder": SLatGaussianDecoder,
    "ElasticSLatGaussianDecoder": SLatGaussianDecoder,
    "SLatRadianceFieldDecoder": SLatRadianceFieldDecoder,
    "ElasticSLatRadianceFieldDecoder": SLatRadianceFieldDecoder,
    "SLatEncoder": SLatEncoder,
    "ElasticSLatEncoder": SLatEncoder,
}
# Arguments that select what our classes always do; any other value is another network.
FIXED_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "pe_mode": ("ape",),
    "attn_mode": ("swin",),
    "share_mod": (False,),
    "use_skip_connection": (True,),
    "norm_type": ("layer",),
    "representation_config": ({"use_color": True},),
    # How the reference trained, not what it computes.
    "use_fp16": (True, False),
    "use_checkpoint": (True, False),
}
# Modules whose linear and convolutional layers run in half precision.
TRUNK = ("blocks", "middle_block", "input_blocks", "out_blocks", "upsample")


@dataclass(frozen=True)
class Architectures:
    """What the files of one family of pipelines may describe.

    Attributes:
        classes: what builds a network, by its class in the .json.
        fixed_arguments: values of arguments that our classes do without: each, or, of a list, each
            entry must be one of them.
        computed: last parts of the names of stored tensors that we compute.
        renamed: names of tensors in official files, and ours of the same; ours are read, too.
    """

    classes: Mapping[str, Callable[..., nn.Module]]
    fixed_arguments: Mapping[str, tuple[Any, ...]]
    computed: tuple[str, ...] = ()
    renamed: Callable[[nn.Module], Mapping[str, str]] = lambda model: {}


TRELLIS = Architectures(CLASSES, FIXED_ARGUMENTS)


def build_model(file: ModelFile, origin: str, architectures: Architectures = TRELLIS) -> nn.Module:
    """A model with random weights, on the current default device.

    Raises:
        WeightsError: its class or an argument is one that this plugin does not have.
    """
    classes, fixed = architectures.classes, architectures.fixed_arguments
    if file.name not in classes:
        raise WeightsError(
            f"{origin}: unknown model class {file.name!r}; known: {', '.join(classes)}"
        )
    build = classes[file.name]
    accepted = inspect.signature(build).parameters
    arguments = {}
    for name, value in file.args.items():
        if name in accepted:
            arguments[name] = value
            continue
        if name not in fixed:
            raise WeightsError(f"{origin}: {file.name} has no argument {name!r}")
        entries = value if isinstance(value, list) else [value]
        if not all(entry in fixed[name] for entry in entries):
            raise WeightsError(f"{origin}: {name} = {value!r} is not supported by this plugin")
    try:
        return build(**arguments)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{origin}: {error}") from error


def random_model(
    file: ModelFile,
    origin: str,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    architectures: Architectures = TRELLIS,
) -> nn.Module:
    """A frozen model with random weights."""
    with torch.device(device):
        model = build_model(file, origin, architectures)
    cast_trunk(model, dtype)
    return model.eval().requires_grad_(False)


def cast_trunk(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the layers that the reference runs in half precision; the others stay in float32.

    These are the linear and convolutional layers inside blocks. Norms, embedders, and the input
    and output layers keep their precision.
    """
    for layer in trunk_layers(model):
        layer.to(dtype)


def trunk_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that may run in half precision."""
    for name, child in model.named_children():
        if name in TRUNK:
            for layer in child.modules():
                if isinstance(layer, nn.Linear | nn.Conv3d | SparseConv3d):
                    yield layer
