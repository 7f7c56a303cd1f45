"""`build`: the only place where names become objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modalign.errors import BuildError, WeightsError
from modalign.fitting import Choice, fit, lacking, misfit, too_many_soft_tokens
from modalign.hub import downloaded
from modalign.recipe import ReadingConfig, Recipe
from modalign.registry import Registry, installed
from modalign.spaces import route
from modalign.specs import Asset, ReadsLayers, TargetEncoder, VLMSpec
from modalign.tokens import TokenStream, TokenStreamSpec

if TYPE_CHECKING:
    import torch

    from modalign.checkpoint import Checkpoint
    from modalign.fingerprint import Fingerprint
    from modalign.pairing import Pair
    from modalign.pipeline import Pipeline

    Device = str | torch.device

PLACES = ("vlm", "encoder", "head", "generator")
HEAD = "head."


def build(
    recipe: str | Recipe,
    *,
    weights: str | Path = "pretrained",
    device: Device | Mapping[str, Device] = "cpu",
    dtype: torch.dtype | None = None,
    stagewise: bool = False,
    registry: Registry | None = None,
) -> Pipeline:
    """The pipeline of a recipe, given by name or value.

    Args:
        recipe: a registered name, or a `Recipe`.
        weights: "pretrained" takes the published or shipped weights of every part; "random"
            initialises every part, offline, also on `device="meta"`; "untrained" initialises the
            head and takes everything else as "pretrained", to train on; a path takes the trained
            tensors from that checkpoint, a file or the folder of `save_pretrained`, and everything
            else as "pretrained".
        device: where all parts live, or a dict of "vlm", "encoder", "head" and "generator"; those
            that it leaves out live on the CPU.
        dtype: of their parameters; float32 if None.
        stagewise: load the VLM, the head and the generator one after the other, each time they are
            used, and free them again: memory is that of the largest.
        registry: where names are looked up; what is installed if None.

    Raises:
        RegistryError: the recipe's name is unknown.
        BuildError: parts are unknown, miss a library, or do not fit; all misfits are listed.
        WeightsError: weights are missing, damaged or of another model.
    """
    registry = registry or installed()
    named = registry.get("recipes", recipe) if isinstance(recipe, str) else recipe
    chosen = fit(named, registry)
    return _assemble(named, chosen, registry, weights, device, dtype, stagewise)


def from_pretrained(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    device: Device | Mapping[str, Device] = "cpu",
    dtype: torch.dtype | None = None,
    stagewise: bool = False,
    verify: bool = True,
    registry: Registry | None = None,
) -> Pipeline:
    """The pipeline that was saved in a file, a folder, or a repository on the Hub.

    Its recipe comes from the file and need not be registered; its parts must be.

    Args:
        source: a path, or the name of a repository, such as "lab/gap3d-large".
        revision: a branch, tag or commit of a repository.
        device: as for `build`; so are dtype, stagewise and registry.
        verify: compare the file's fingerprint, if it has one, with the encoder's now, and free the
            encoder again. Without it that happens when the encoder is first used, which
            generating never does.

    Raises:
        BuildError: parts of its recipe are unknown, miss a library, or do not fit.
        WeightsError: there is nothing of that name, it is damaged, or it was trained on other
            weights of the encoder; or those are not here to compare.
    """
    from modalign.checkpoint import WEIGHTS_NAME, recipe_of

    path = Path(source)
    if not path.exists():
        named = str(source)
        if named.count("/") != 1 or path.suffix == ".safetensors":
            raise WeightsError(
                f"no checkpoint at {named}; give a .safetensors file, a folder that holds "
                f"{WEIGHTS_NAME}, or the name of a repository on the Hub, owner/name"
            )
        path = downloaded(named, named, [WEIGHTS_NAME], revision)
    elif revision is not None:
        raise WeightsError(f"revision {revision!r} was given, but {path} is no repository")
    path = weights_file(path)
    pipeline = build(
        recipe_of(path),
        weights=path,
        device=device,
        dtype=dtype,
        stagewise=stagewise,
        registry=registry,
    )
    if verify and "fingerprint" in pipeline.extra:
        try:
            pipeline.parts.build("encoder")
        except WeightsError as error:
            raise WeightsError(f"{error}; verify=False loads {path} without comparing") from error
        pipeline.parts.release("encoder")
    return pipeline


def pair(
    encoder: str,
    generator: str,
    *,
    weights: str = "pretrained",
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    registry: Registry | None = None,
) -> Pair:
    """An encoder driving a generator of its space directly, both given by name.

    Args:
        encoder: what reads pictures, texts or point clouds.
        generator: what makes assets of its tokens.
        weights: "pretrained" or "random", of both.
        device: where both live.
        dtype: of their parameters; float32 if None.
        registry: where names are looked up; what is installed if None.

    Raises:
        RegistryError: a name is unknown.
        BuildError: they do not fit, or a library is missing.
        WeightsError: weights are missing or damaged.
    """
    import torch

    from modalign.pairing import Pair

    registry = registry or installed()
    reader, maker = registry.get("encoders", encoder), registry.get("generators", generator)
    misfits = lacking(reader) + lacking(maker)
    way = route(reader.stream, maker.accepts, registry.catalogue.space_maps.values())
    if way is None:
        misfits.append(misfit(reader, maker))
    if misfits:
        raise BuildError("; ".join(misfits))
    assert way is not None
    options = {"weights": weights, "device": device, "dtype": dtype or torch.float32}
    parts = reader.build(**options), way.build(**options), maker.build(**options)
    return Pair(*parts, crop=maker.crop)


def _assemble(
    recipe: Recipe,
    chosen: Choice,
    registry: Registry,
    weights: str | Path,
    device: Device | Mapping[str, Device],
    dtype: torch.dtype | None,
    stagewise: bool,
) -> Pipeline:
    import torch

    from modalign.checkpoint import load_trained
    from modalign.models.dit import TokenStreamDiT
    from modalign.parts import Parts
    from modalign.pipeline import Pipeline

    shared: dict[str, Any] = {
        "weights": "random" if weights == "random" else "pretrained",
        "dtype": dtype or torch.float32,
    }
    devices = _devices(device)
    options = {kind: {**shared, "device": place} for kind, place in devices.items()}
    fresh = weights in ("random", "untrained")
    if fresh and stagewise:
        raise BuildError(
            f"stagewise loads weights each time they are used; weights={weights!r} cannot be"
        )
    checkpoint = None if fresh else _checkpoint(recipe, weights)
    stream = chosen.encoder.stream
    # Rows that a training added to the word table are read with the words, and not trained.
    added = {} if checkpoint is None else _frozen(checkpoint)
    builders: dict[str, Callable[[], Any]] = {
        "vlm": partial(chosen.vlm.build, **recipe.vlm_options, **added, **options["vlm"]),
        "encoder": partial(chosen.encoder.build, **options["encoder"]),
        "decoder": partial(_decoder, recipe, stream, registry, options["generator"]),
    }
    if chosen.generator is not None:
        assert chosen.route is not None
        builders["generator"] = partial(chosen.generator.build, **options["generator"])
        builders["connect"] = partial(chosen.route.build, **options["generator"])
    parts = Parts(
        builders,
        objective=chosen.objective.build(recipe, stream, **recipe.objective.options),
        devices=devices,
        about=described(chosen),
        modality=chosen.encoder.modality,
        crop=None if chosen.generator is None else chosen.generator.crop,
        random=weights == "random",
    )
    if not stagewise:
        parts.build("vlm", "generator", "connect")
    condition_dim = _condition_dim(recipe, chosen.vlm, parts.vlm)
    empty = checkpoint is not None
    with torch.device("meta") if empty else devices["head"], _default(shared["dtype"]):
        head = TokenStreamDiT(stream, recipe.head, condition_dim)
        # N(0, 1), as released: much larger than token embeddings (facts of GAP3D, 1.3).
        soft = torch.randn(1, recipe.num_soft_tokens, condition_dim)
    if checkpoint is None:
        pipeline = Pipeline(recipe, stream, parts, head, torch.nn.Parameter(soft))
        return pipeline.to(devices["head"], shared["dtype"]).eval()
    load = partial(
        load_trained, checkpoint, recipe, stream, device=devices["head"], dtype=shared["dtype"]
    )
    pipeline = Pipeline(
        recipe,
        stream,
        parts,
        head,
        torch.nn.Parameter(soft),
        load_head=partial(_head_tensors, load) if stagewise else None,
    )
    wanted = _outside_head if stagewise else None
    trained = load(expected=pipeline.trainable(), only=wanted)
    pipeline.load_state_dict(trained.tensors, strict=not stagewise, assign=True)
    pipeline.extra, pipeline.frozen_tensors = trained.extra, trained.frozen
    builders["encoder"] = partial(
        _checked_encoder,
        chosen,
        options["encoder"],
        trained.extra.get("fingerprint"),
        checkpoint,
    )
    if stagewise:
        parts.release("vlm")
    return pipeline.eval()


def _frozen(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Tensors of frozen parts in a checkpoint, as options of the VLM's builder."""
    from modalign.checkpoint import FROZEN, load_checkpoint

    found = load_checkpoint(checkpoint, only=lambda name: name.startswith(FROZEN)).frozen
    return {name.removeprefix(FROZEN): tensor for name, tensor in found.items()}


def _outside_head(name: str) -> bool:
    return not name.startswith(HEAD)


def _head_tensors(load: Callable[..., Checkpoint]) -> dict[str, torch.Tensor]:
    found = load(only=lambda name: name.startswith(HEAD)).tensors
    return {name.removeprefix(HEAD): tensor for name, tensor in found.items()}


def _devices(device: Device | Mapping[str, Device]) -> dict[str, torch.device]:
    """Where each part lives.

    Raises:
        BuildError: a part is called otherwise.
    """
    import torch

    if not isinstance(device, Mapping):
        return dict.fromkeys(PLACES, torch.device(device))
    unknown = sorted(set(device) - set(PLACES))
    if unknown:
        raise BuildError(f"device= names {', '.join(unknown)}; parts are {', '.join(PLACES)}")
    return {kind: torch.device(device.get(kind, "cpu")) for kind in PLACES}


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have `dtype`: random weights then never exist twice."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _condition_dim(recipe: Recipe, spec: VLMSpec, vlm: Any) -> int:
    """The width C of the built adapter's states, once it is known to give what the recipe reads.

    Raises:
        BuildError: it reads fewer positions or layers, or cannot give layers at all.
    """
    misfits = [] if spec.max_positions else too_many_soft_tokens(recipe, vlm.max_positions)
    reading = recipe.reading
    if reading != ReadingConfig() and not isinstance(vlm, ReadsLayers):
        misfits.append(
            f"recipe {recipe.name!r} reads layers or the prompt's own states, but the adapter of "
            f"{spec.name!r} has no read_layers(); leave `reading` out, or choose another vlm"
        )
    elif reading.layers != "last" and max(reading.layers) > vlm.num_layers:
        misfits.append(
            f"recipe {recipe.name!r} reads layer {max(reading.layers)}, but {spec.name!r} has "
            f"layers 0 to {vlm.num_layers}"
        )
    if misfits:
        raise BuildError("; ".join(misfits))
    width: int = vlm.hidden_dim
    return width


def _decoder(
    recipe: Recipe, stream: TokenStreamSpec, registry: Registry, options: dict[str, Any]
) -> Callable[[TokenStream], list[Asset]]:
    """What shows streams as pictures: the installed decoder to which the shortest way leads."""
    catalogue = registry.catalogue
    decoders = [s for s in catalogue.generators.values() if s.decodes and s.produces == "picture"]
    ways = [(route(stream, s.accepts, catalogue.space_maps.values()), s) for s in decoders]
    found = [(way, spec) for way, spec in ways if way is not None]
    if not found:
        known = ", ".join(f"{spec.name!r} reads {spec.accepts.space!r}" for spec in decoders)
        raise BuildError(
            f"recipe {recipe.name!r} makes tokens of {stream.space!r}, which no installed decoder "
            f"shows as pictures ({known or 'none is installed'})"
        )
    way, spec = min(found, key=lambda pair: (len(pair[0].maps), pair[1].name))
    if absent := lacking(spec):
        raise BuildError(*absent)
    decoder = spec.build(**options)
    carry = way.build(**options)

    def show(stream: TokenStream) -> list[Asset]:
        return decoder.generate(carry(stream), seed=0)  # it draws nothing

    return show


def weights_file(path: Path) -> Path:
    """The weights file: `path`, or the one in the folder `path`."""
    from modalign.checkpoint import WEIGHTS_NAME

    return path / WEIGHTS_NAME if path.is_dir() else path


def described(chosen: Choice) -> dict[str, Any]:
    """What a saved file says of the parts around its head, as JSON content."""
    parts = {"vlms": chosen.vlm, "encoders": chosen.encoder, "generators": chosen.generator}
    told = {
        kind: {"name": part.name, "source": part.source, "license": part.license}
        for kind, part in parts.items()
        if part is not None
    }
    if chosen.generator is not None:
        told["generators"]["produces"] = chosen.generator.produces
    return {
        "parts": told,
        "prompt_template": chosen.vlm.template,
        "preprocessing": chosen.encoder.preprocessing,
        "null_condition": "zeros",
    }


def _checked_encoder(
    chosen: Choice, options: dict[str, Any], expected: Fingerprint | None, checkpoint: Path | None
) -> TargetEncoder:
    """The encoder, if its weights are those that the checkpoint's head was trained on.

    Raises:
        WeightsError: they are others.
    """
    from modalign.fingerprint import fingerprint, same_weights

    encoder = chosen.encoder.build(**options)
    if expected is not None:
        found = fingerprint(encoder, chosen.encoder.modality)
        if not same_weights(expected, found):
            raise WeightsError(
                f"{checkpoint} was trained on other weights of {chosen.encoder.name!r} than these: "
                "one picture gives other tokens; use the encoder it was trained with, or train anew"
            )
    return encoder


def _checkpoint(recipe: Recipe, weights: str | Path) -> Path:
    if weights != "pretrained":
        path = weights_file(Path(weights))
        if not path.is_file():
            raise WeightsError(
                f"no checkpoint at {path}; give a .safetensors file of this recipe, or "
                "'pretrained', 'untrained' or 'random'"
            )
        return path
    if recipe.checkpoint is None:
        raise WeightsError(
            f"no trained weights are published for recipe {recipe.name!r}; train them, pass the "
            "path of a checkpoint, or weights='random' to look at the network"
        )
    return shipped(recipe)


def shipped(recipe: Recipe) -> Path:
    """The weights that come with `recipe`, which must name some.

    Raises:
        WeightsError: they are missing from this installation.
    """
    assert recipe.checkpoint is not None
    package, _, name = recipe.checkpoint.partition("/")
    path = Path(str(resources.files(package) / name))
    if not path.is_file():
        raise WeightsError(
            f"recipe {recipe.name!r} ships its weights as {recipe.checkpoint}, but that file is "
            "missing from this installation; reinstall modalign"
        )
    return path
