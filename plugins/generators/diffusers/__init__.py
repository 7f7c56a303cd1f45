"""Generators that are stock pipelines of diffusers, driven through their own embedding arguments.

Nothing of a pipeline is copied or changed: tokens take the place that an image encoder's output
has in it. `driving` is what all share while they run, `loading` while they are built; every other
module is one generator: its stream, its class, how it is built, its spec.
"""

from __future__ import annotations

from modalign import GeneratorSpec, hookimpl

from . import flux_redux, ip_adapter, kandinsky, rae, sdxl_eva, shap_e


@hookimpl
def modalign_generators() -> list[GeneratorSpec]:
    """One of meshes, five of pictures."""
    return [
        shap_e.SPEC,
        sdxl_eva.SPEC,
        kandinsky.SPEC,
        ip_adapter.SPEC,
        flux_redux.SPEC,
        rae.SPEC,
    ]
