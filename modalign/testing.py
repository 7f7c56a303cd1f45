"""The contract as a test kit: what every encoder, VLM adapter, generator and map must do.

For plugin authors: `check_encoder(spec)` in a test of their own, or `modalign plugin check NAME`.
Random weights suffice; a full-size model then takes its memory, but no download.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modalign.errors import GenerationError, PromptError
from modalign.specs import (
    Asset,
    EncoderSpec,
    GeneratorSpec,
    Progress,
    Prompt,
    ReadsLayers,
    SpaceMap,
    VLMSpec,
)
from modalign.tokens import TokenStream, TokenStreamSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

# Batches are computed in another order than single samples; float32 then differs by this much.
TOLERANCE = 1e-3


class ContractError(AssertionError):
    """A plugin breaks its contract; the message says which clause, and what was seen."""


def pictures(sizes: Sequence[tuple[int, int]] = ((160, 160), (200, 120), (90, 150))) -> list[Image]:
    """RGB pictures of these (width, height), each with its own pattern; the same every time."""
    import numpy as np
    from PIL import Image as images

    made = []
    for index, (width, height) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        waves = [np.sin((index + 2) * axis / 9 + index) for axis in (x, y, x + y)]
        made.append(images.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8)))
    return made


def point_clouds(counts: Sequence[int] = (2000, 1500, 3000)) -> list[NDArray[np.float32]]:
    """Coloured point clouds (P, 6), each a ball of its own shape; the same every time.

    Coordinates lie within -1..1, colours within 0..1.
    """
    import numpy as np

    made = []
    for index, count in enumerate(counts):
        draw = np.random.default_rng(index)
        direction = draw.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        radius = 0.6 + 0.3 * np.sin((index + 2) * 3 * direction[:, :1])
        colours = 0.5 + 0.4 * np.cos((index + 1) * 2 * direction)
        made.append(np.concatenate([radius * direction, colours], axis=1).astype(np.float32))
    return made


def sentences() -> list[str]:
    """Texts of several lengths, the same every time."""
    return ["a red mug", "a small wooden chair with four legs and a cushion", "castle"]


SAMPLES: Mapping[str, Callable[[], list[Any]]] = {
    "image": pictures,
    "points": point_clouds,
    "text": sentences,
}
"""What an encoder is checked with, by the modality of its spec."""


def check_encoder(
    spec: EncoderSpec, samples: Sequence[Any] | None = None, **build_options: Any
) -> None:
    """Accept an encoder that keeps the contract of `TargetEncoder`.

    `samples` are what it takes; by default pictures, point clouds or texts, as its spec's modality
    says. `build_options` go to `spec.build`; without them the weights are random.

    Raises:
        ContractError: a clause is broken.
    """
    import torch

    _require(
        spec.modality in SAMPLES,
        f"modality {spec.modality!r} is not known; an encoder takes {' or '.join(SAMPLES)}",
    )
    samples = SAMPLES[spec.modality]() if samples is None else list(samples)
    _require(len(samples) >= 2, "give at least two samples: batches are compared with single ones")
    encoder = _built(spec, build_options)
    _require(
        encoder.stream == spec.stream,
        f"the encoder's stream {encoder.stream.space!r} is not the declared one, "
        f"{spec.stream.space!r}, or has another layout",
    )
    batch = encoder.prepare(samples)
    _check_prepared({"prepare": batch}, {"prepare": encoder.prepare(samples)})
    _require(len(batch) == len(samples), f"{len(samples)} samples gave a batch of {len(batch)}")
    with _global_random_state_kept("encode"):
        stream = encoder.encode(batch)
    _check_stream(spec.stream, stream, len(samples))
    _require(
        not any(tokens.requires_grad for tokens in stream.values()),
        "encode returns tokens with a gradient; wrap it in torch.no_grad()",
    )
    _require(
        not any(tokens.is_inference() for tokens in stream.values()),
        "encode returns inference tensors, which autograd refuses; use torch.no_grad()",
    )
    again = encoder.encode(batch)
    for name, tokens in stream.items():
        _require(torch.equal(tokens, again[name]), f"encoding twice changes group {name!r}")
        _require(
            not torch.allclose(tokens[0], tokens[1]),
            f"two different samples give the same tokens of group {name!r}",
        )
    for index in range(len(samples)):
        alone = encoder.encode(encoder.prepare([samples[index]]))
        _check_stream(spec.stream, alone, 1)
        for name, tokens in stream.items():
            _require_close(
                alone[name][0], tokens[index], f"group {name!r} of a sample depends on its batch"
            )
    for name, tokens in spec.stream.project(stream).items():
        _require_close(
            stream[name], tokens, f"group {name!r} lies off the space {spec.stream.space!r}"
        )


def check_vlm(
    spec: VLMSpec,
    prompts: Sequence[Prompt] | None = None,
    *,
    num_soft_tokens: int = 5,
    frozen: bool = True,
    **build_options: Any,
) -> None:
    """Accept an adapter that keeps the contract of `VLMAdapter`.

    `frozen`: nothing but the soft tokens may receive a gradient. `build_options` go to
    `spec.build`; without them the weights are random. Prompts should differ in length.

    Raises:
        ContractError: a clause is broken.
    """
    import torch

    if prompts is None:
        prompts = [Prompt("a red mug"), Prompt("a small wooden chair with four legs and a cushion")]
        if spec.accepts_images:
            prompts.append(Prompt("a red mug", (pictures()[0],)))
    prompts = list(prompts)
    _require(len(prompts) >= 2, "give at least two prompts: batches are compared with single ones")
    adapter = _built(spec, build_options)
    width = adapter.hidden_dim
    _require(
        spec.hidden_dim in (None, width),
        f"the adapter's hidden_dim {width} is not the declared {spec.hidden_dim}",
    )
    _require(
        spec.max_positions is not None or hasattr(adapter, "max_positions"),
        "the spec declares no max_positions, and the adapter has none either",
    )
    batch = adapter.prepare(prompts)
    _check_prepared(batch, adapter.prepare(prompts))
    try:
        adapter.prepare([Prompt("  ")])
    except PromptError:
        pass
    else:
        raise ContractError("an empty prompt must raise PromptError, not be read")

    draw = torch.Generator().manual_seed(0)
    soft = torch.randn(1, num_soft_tokens, width, generator=draw).requires_grad_()
    with _global_random_state_kept("read"):
        hidden = adapter.read(batch, soft).hidden
    expected = (len(prompts), num_soft_tokens, width)
    _require(
        tuple(hidden.shape) == expected,
        f"read must return (B, S, C) = {expected}, got {tuple(hidden.shape)}",
    )
    _require(bool(torch.isfinite(hidden).all()), "read returns numbers that are not finite")
    again = adapter.read(batch, soft).hidden
    _require(torch.equal(hidden, again), "reading twice gives different hidden states")
    for index, prompt in enumerate(prompts):
        alone = adapter.read(adapter.prepare([prompt]), soft).hidden
        _require_close(
            alone[0], hidden[index], f"prompt {index} reads differently alone: padding leaks in"
        )
        if index:
            _require(
                not torch.allclose(hidden[index], hidden[0], atol=TOLERANCE),
                f"prompts 0 and {index} read alike: the prompt, or its picture, does not reach "
                "the soft tokens",
            )
    _check_causality(adapter, batch, soft, hidden)
    _check_gradient(hidden, soft, frozen)
    if isinstance(adapter, ReadsLayers):
        _check_layers(adapter, prompts, soft, hidden)


def check_generator(
    spec: GeneratorSpec, stream: TokenStream | None = None, **build_options: Any
) -> None:
    """Accept a generator that keeps the contract of `Generator`.

    `stream` is what it generates from; by default noise put on the manifold of its space.
    `build_options` go to `spec.build`; without them the weights are random, and then a generator
    may also refuse with `GenerationError`: random weights need not make anything.

    Raises:
        ContractError: a clause is broken.
    """
    import torch

    generator = _built(spec, build_options)
    _require(
        generator.accepts == spec.accepts,
        f"the generator accepts {generator.accepts.space!r}, not the declared "
        f"{spec.accepts.space!r}, or has another layout",
    )
    _require(
        not spec.formats or spec.produces in spec.formats,
        f"the generator produces {spec.produces!r}, which its formats {spec.formats} leave out",
    )
    if stream is None:
        draw = torch.Generator().manual_seed(0)
        noise = {
            group.name: torch.randn(2, group.num_tokens, group.dim, generator=draw)
            for group in spec.accepts.groups
        }
        stream = spec.accepts.project(noise)
    spec.accepts.check(stream)
    kept = {name: tokens.clone() for name, tokens in stream.items()}
    steps: list[Progress] = []
    try:
        with _global_random_state_kept("generate"):
            assets = generator.generate(stream, seed=0, progress=steps.append)
    except GenerationError:
        if build_options.get("weights", "random") != "random":
            raise
        return
    size = len(next(iter(stream.values())))
    _require(len(assets) == size, f"a stream of {size} gave {len(assets)} assets")
    for asset in assets:
        _require(
            isinstance(asset, Asset), f"{type(asset).__name__} lacks save() or preview() of Asset"
        )
    for name, tokens in stream.items():
        _require(torch.equal(tokens, kept[name]), f"generate changes group {name!r} of its input")
    for step in steps:
        _require(
            isinstance(step, Progress) and 0 <= step.step <= step.total,
            f"progress reports must be Progress with step <= total, got {step!r}",
        )
    numbers = _numbers(assets)
    _require(bool(numbers), "assets carry no arrays to compare")
    repeated = _numbers(generator.generate(stream, seed=0))
    _require(_same(numbers, repeated), "the same seed gives another asset")
    other = _same(numbers, _numbers(generator.generate(stream, seed=1)))
    if spec.decodes:
        _require(other, "another seed gives another asset, but the generator is said to decode")
    else:
        _require(not other, "another seed gives the same asset: seed has no effect")


def check_space_map(spec: SpaceMap, **build_options: Any) -> None:
    """Accept a map that carries streams from its source's layout to its target's, and back.

    `build_options` go to `spec.build`; without them the weights are random.

    Raises:
        ContractError: a clause is broken.
    """
    import torch

    forward, inverse = _built(spec, build_options)
    source, target = spec.source_stream, spec.target_stream
    draw = torch.Generator().manual_seed(0)
    shapes = {group.name: (2, group.num_tokens, group.dim) for group in source.groups}
    stream = source.project(
        {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    )
    carried = forward(dict(stream))
    try:
        target.check(carried)
    except ValueError as error:
        raise ContractError(f"forward does not give the target's layout: {error}") from error
    _require(
        (inverse is None) == spec.one_way,
        "a map is one-way exactly if it has no inverse: one_way is "
        f"{spec.one_way}, and the inverse is {'None' if inverse is None else 'there'}",
    )
    if inverse is not None:
        for name, tokens in inverse(dict(carried)).items():
            _require_close(tokens, stream[name], f"group {name!r} does not come back")


def _built(spec: Any, build_options: Mapping[str, Any]) -> Any:
    """The part, with random weights unless the options say otherwise; the same every time.

    Libraries draw weights from torch's global generator: it is seeded here, and put back.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return spec.build(**{"weights": "random", **build_options})


def _check_prepared(prepared: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
    import torch

    for name, tensor in prepared.items():
        _require(
            isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu",
            f"prepare must return tensors on the CPU; {name!r} is not one",
        )
        _require(not tensor.requires_grad, f"prepare returns {name!r} with a gradient")
        _require(torch.equal(tensor, again[name]), f"preparing twice changes {name!r}")
        try:
            back = pickle.loads(pickle.dumps(tensor))
        # A plugin's tensor class may raise anything when it is pickled.
        except Exception as error:
            raise ContractError(f"{name!r} of prepare cannot be pickled: {error}") from error
        _require(torch.equal(tensor, back), f"{name!r} of prepare does not survive pickling")


def _check_stream(spec: TokenStreamSpec, stream: TokenStream, size: int) -> None:
    import torch

    try:
        spec.check(stream)
    except ValueError as error:
        raise ContractError(f"encode does not return the declared stream: {error}") from error
    for name, tokens in stream.items():
        _require(len(tokens) == size, f"{size} samples gave {len(tokens)} rows of group {name!r}")
        _require(tokens.is_floating_point(), f"group {name!r} is {tokens.dtype}, not floating")
        _require(bool(torch.isfinite(tokens).all()), f"group {name!r} is not finite")


def _check_causality(
    adapter: Any, batch: Mapping[str, Tensor], soft: Tensor, hidden: Tensor
) -> None:
    import torch

    middle = soft.shape[1] // 2
    changed = soft.detach().clone()
    changed[:, middle] = -changed[:, middle] + 1
    with torch.no_grad():
        after = adapter.read(batch, changed).hidden
    _require_close(
        after[:, :middle],
        hidden[:, :middle],
        f"changing soft token {middle} changes an earlier one: attention is not causal",
    )
    for position in range(middle, soft.shape[1]):
        _require(
            not torch.allclose(after[:, position], hidden[:, position], atol=1e-6),
            f"changing soft token {middle} leaves token {position} as it was",
        )


def _check_layers(
    adapter: ReadsLayers, prompts: Sequence[Prompt], soft: Tensor, hidden: Tensor
) -> None:
    import torch

    vlm: Any = adapter
    batch = vlm.prepare(prompts)
    layers = (0, adapter.num_layers)
    with torch.no_grad():
        output = adapter.read_layers(batch, soft, layers=layers, prompt_states=True)
        alone = adapter.read_layers(batch, soft, layers=layers)
    states, mask, num_soft = output.hidden, output.mask, soft.shape[1]
    if mask is None:
        raise ContractError("read_layers gives the prompt's own states without a mask")
    expected = (len(prompts), len(layers), mask.shape[1], hidden.shape[-1])
    _require(
        tuple(states.shape) == expected,
        f"read_layers must return (B, L, P + S, C) = {expected}, got {tuple(states.shape)}",
    )
    _require(bool(mask[:, -num_soft:].all()), "read_layers must put the soft tokens last, unmasked")
    _require(
        not states.transpose(1, 2)[mask == 0].any(), "the prompt's states are not zero at padding"
    )
    _require_close(states[:, :, -num_soft:], alone.hidden, "the prompt's states change the others")
    _require_close(
        alone.hidden[:, -1], hidden, "the last layer of read_layers is not what read has"
    )
    for index, prompt in enumerate(prompts):
        with torch.no_grad():
            own = adapter.read_layers(
                vlm.prepare([prompt]), soft, layers=layers, prompt_states=True
            ).hidden[0]
        _require_close(
            states[index][:, mask[index] > 0],
            own,
            f"the states of prompt {index} are different alone: padding leaks in",
        )


def _check_gradient(hidden: Tensor, soft: Tensor, frozen: bool) -> None:
    import torch

    _require(hidden.requires_grad, "no gradient reaches the soft tokens: read is detached")
    if frozen:
        others = [leaf for leaf in _leaves(hidden) if leaf is not soft]
        _require(
            not others,
            f"a gradient also reaches {len(others)} other tensors, for example one of shape "
            f"{tuple(others[0].shape) if others else ()}: freeze the model",
        )
    # The last position depends on every soft token.
    (gradient,) = torch.autograd.grad(hidden[:, -1].square().sum(), soft, allow_unused=True)
    _require(gradient is not None, "no gradient reaches the soft tokens: read is detached")
    silent = [k for k in range(soft.shape[1]) if not gradient[0, k].abs().sum() > 0]
    _require(not silent, f"no gradient reaches soft tokens {silent} from the last one")


def _leaves(tensor: Tensor) -> list[Tensor]:
    """Every tensor that a backward pass from `tensor` would give a gradient."""
    found, seen, open_nodes = [], set(), [tensor.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        open_nodes.extend(parent for parent, _ in node.next_functions)
    return found


def _numbers(value: Any) -> list[torch.Tensor]:
    """Every array inside `value`, in order of attributes, keys and items."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return [value.detach().cpu()]
    if isinstance(value, np.ndarray):
        return [torch.from_numpy(np.ascontiguousarray(value))]
    if isinstance(value, Mapping):
        return [array for key in value for array in _numbers(value[key])]
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in _numbers(item)]
    return _numbers(vars(value)) if hasattr(value, "__dict__") else []


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    import torch

    return len(left) == len(right) and all(map(torch.equal, left, right))


@contextmanager
def _global_random_state_kept(what: str) -> Iterator[None]:
    import torch

    before = torch.get_rng_state()
    yield
    _require(
        torch.equal(before, torch.get_rng_state()),
        f"{what} draws from or seeds torch's global generator; use one of its own",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def _require_close(actual: Tensor, expected: Tensor, message: str) -> None:
    shapes = tuple(actual.shape), tuple(expected.shape)
    _require(shapes[0] == shapes[1], f"{message} (shapes {shapes[0]} and {shapes[1]})")
    difference = float((actual.float() - expected.float()).detach().abs().max())
    _require(difference <= TOLERANCE, f"{message} (largest difference {difference:.3g})")
