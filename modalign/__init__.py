"""modalign: let any vision-language model drive any frozen, image-conditioned generator.

`modalign.build("gap3d-mini")` returns a pipeline; `pipeline.generate("a red mug")` a mesh.
Importing this package loads neither torch nor transformers; names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modalign.assembly import build, from_pretrained, pair
    from modalign.assets import Gaussians, Mesh, Picture, RadianceField
    from modalign.errors import (
        BuildError,
        GenerationError,
        ModalignError,
        OutputError,
        PromptError,
        RegistryError,
        SampleError,
        TrainingError,
        WeightsError,
    )
    from modalign.hookspecs import hookimpl
    from modalign.pipeline import Pipeline
    from modalign.recipe import (
        DiTConfig,
        FlowConfig,
        ReadingConfig,
        Recipe,
        Ref,
        SamplerConfig,
        TrainingConfig,
    )
    from modalign.registry import Registry, installed
    from modalign.specs import (
        DatasetSpec,
        EncoderSpec,
        Example,
        GeneratorSpec,
        ObjectiveSpec,
        Progress,
        Prompt,
        SpaceMap,
        SuiteSpec,
        VLMOutput,
        VLMSpec,
    )
    from modalign.tokens import TokenGroup, TokenStream, TokenStreamSpec

__version__ = "0.1.0"

_HOMES = {
    "assembly": ("build", "from_pretrained", "pair"),
    "assets": ("Gaussians", "Mesh", "Picture", "RadianceField"),
    "errors": (
        "BuildError",
        "GenerationError",
        "ModalignError",
        "OutputError",
        "PromptError",
        "RegistryError",
        "SampleError",
        "TrainingError",
        "WeightsError",
    ),
    "hookspecs": ("hookimpl",),
    "pipeline": ("Pipeline",),
    "recipe": (
        "DiTConfig",
        "FlowConfig",
        "ReadingConfig",
        "Recipe",
        "Ref",
        "SamplerConfig",
        "TrainingConfig",
    ),
    "registry": ("Registry", "installed"),
    "specs": (
        "DatasetSpec",
        "EncoderSpec",
        "Example",
        "GeneratorSpec",
        "ObjectiveSpec",
        "Progress",
        "Prompt",
        "SpaceMap",
        "SuiteSpec",
        "VLMOutput",
        "VLMSpec",
    ),
    "tokens": ("TokenGroup", "TokenStream", "TokenStreamSpec"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BuildError",
    "DatasetSpec",
    "DiTConfig",
    "EncoderSpec",
    "Example",
    "FlowConfig",
    "Gaussians",
    "GenerationError",
    "GeneratorSpec",
    "Mesh",
    "ModalignError",
    "ObjectiveSpec",
    "OutputError",
    "Picture",
    "Pipeline",
    "Progress",
    "Prompt",
    "PromptError",
    "RadianceField",
    "ReadingConfig",
    "Recipe",
    "Ref",
    "Registry",
    "RegistryError",
    "SampleError",
    "SamplerConfig",
    "SpaceMap",
    "SuiteSpec",
    "TokenGroup",
    "TokenStream",
    "TokenStreamSpec",
    "TrainingConfig",
    "TrainingError",
    "VLMOutput",
    "VLMSpec",
    "WeightsError",
    "build",
    "from_pretrained",
    "hookimpl",
    "installed",
    "pair",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'modalign' has no attribute {name!r}")
    return getattr(importlib.import_module(f"modalign.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
