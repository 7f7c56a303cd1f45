"""What is written for strangers is true of the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import modalign
from modalign import build, cli, hookspecs, installed, specs
from modalign.contract import matrix

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
PLUGINS = (ROOT / "docs" / "plugins.md").read_text()
PROTOCOLS = [
    specs.TargetEncoder,
    specs.VLMAdapter,
    specs.ReadsLayers,
    specs.Generator,
    specs.Asset,
    specs.Objective,
    specs.Dataset,
    specs.Sharded,
    specs.ReadsPrompts,
    specs.ReportsProblems,
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def signature(node: ast.FunctionDef) -> str:
    returns = ast.unparse(node.returns) if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}) -> {returns}"


def signatures(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            yield signature(node)


DOCUMENTED = {line for block in blocks(PLUGINS, "python") for line in signatures(block)}


def hooks() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("modalign_")]


@pytest.mark.parametrize("name", hooks())
def test_every_hook_is_documented_with_its_exact_signature(name: str) -> None:
    (own,) = signatures(inspect.getsource(getattr(hookspecs, name)))
    assert own in DOCUMENTED


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_every_method_of_a_part_is_documented_with_its_exact_signature(protocol: type) -> None:
    own = set(signatures(inspect.getsource(protocol)))
    assert own <= DOCUMENTED, own - DOCUMENTED


def test_every_field_of_a_spec_is_documented() -> None:
    for record in vars(specs).values():
        if inspect.isclass(record) and issubclass(record, specs.PluginSpec):
            for field in record.__dataclass_fields__:
                assert re.search(rf"\b{field}\b", PLUGINS), f"{record.__name__}.{field}"


def test_every_registered_name_is_documented_and_no_other() -> None:
    registry = installed()
    own = {name for (_, name), owner in registry.owners.items() if owner.startswith("modalign:")}
    listed = set(re.findall(r"^\| [a-z ]+ \| `([^`]+)` \|", PLUGINS, flags=re.MULTILINE))
    assert listed == own


def test_every_recipe_is_in_the_readme() -> None:
    for name, entry in installed().catalogue.recipes.items():
        assert f"`{name}`" in README
        row = re.search(rf"^\| `{re.escape(name)}` \|.*$", README, flags=re.MULTILINE)
        if row:
            for part in (entry.vlm, entry.encoder, entry.generator):
                assert (f"`{part}`" if part else "none") in row[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_pages_compiles_and_names_what_exists(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("modalign"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_modalign_on_the_pages_exist(page: Path) -> None:
    for name in re.findall(r"\bmodalign((?:\.[A-Za-z_]+)+)\b(?!\.(?:md|py))", page.read_text()):
        found: Any = modalign
        for part in name.strip(".").split("."):
            if part in ("png", "glb"):
                break
            if not hasattr(found, part):
                found = importlib.import_module(f"{found.__name__}.{part}")
            else:
                found = getattr(found, part)


def test_pipelines_have_the_methods_that_the_readme_uses() -> None:
    for method in re.findall(r"\bpipeline\.(\w+)\(", README):
        assert callable(getattr(modalign.Pipeline, method))
    for method in re.findall(r"\bmug\.(\w+)\(", README):
        assert callable(getattr(modalign.Mesh, method))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_the_pages_exist(page: Path) -> None:
    verbs = {
        command.name or command.callback.__name__  # type: ignore[union-attr]
        for command in cli.app.registered_commands
    } | {group.name for group in cli.app.registered_groups}
    text = page.read_text()
    called = re.findall(r"`modalign ([a-z]+)", text)
    called += re.findall(r"\bmodalign ([a-z]+)", "".join(blocks(text, "bash")))
    assert set(called) <= verbs | {"--help", "--version"}


def test_options_in_the_readme_exist() -> None:
    flags = set(re.findall(r"`(--[a-z-]+)`", README))
    source = "".join(path.read_text() for path in (ROOT / "modalign" / "cli").glob("*.py"))
    for flag in flags:
        parameter = flag.strip("-").replace("-", "_")
        assert f'"{flag}"' in source or re.search(rf"^    {parameter}: Annotated", source, re.M)


def test_the_readme_shows_the_example_plugin_as_it_is() -> None:
    folder = ROOT / "examples" / "modalign_dinov3"
    assert (folder / "modalign_dinov3.py").read_text() in blocks(README, "python")
    entry = '[project.entry-points.modalign]\ndinov3 = "modalign_dinov3"\n'
    assert entry in blocks(README, "toml")
    assert entry in (folder / "pyproject.toml").read_text()


def test_the_test_command_follows_its_words() -> None:
    """`.ci/run` types the first bash block after "run the tests"."""
    command = blocks(README[README.index("run the tests") :], "bash")[0]
    assert command == (
        'pip install -e ".[dev]" && pip install ./examples/modalign_dinov3 && pytest\n'
    )


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_measured_numbers_have_their_place() -> None:
    """Numbers of results stand between two markers, where a script puts them."""
    assert re.search(r"<!-- numbers -->.*<!-- /numbers -->", README, flags=re.DOTALL)


def parameters(part: Any, depth: int = 3) -> int:
    """Parameters of every network inside `part`."""
    if isinstance(part, torch.nn.Module):
        return sum(tensor.numel() for tensor in part.parameters())
    if isinstance(part, dict):
        return sum(parameters(value, depth - 1) for value in part.values())
    if depth == 0 or not hasattr(part, "__dict__"):
        return 0
    return sum(parameters(value, depth - 1) for value in vars(part).values())


@pytest.mark.parametrize(("name", "column"), [("gap3d", 0), ("gap3d-mini", 1)])
def test_the_sizes_in_the_readme_are_counted(name: str, column: int) -> None:
    pipeline = build(name, weights="random", device="meta")
    counted = {
        "language model, frozen": parameters(pipeline.parts.vlm),
        "target encoder, frozen": parameters(pipeline.parts.encoder),
        "head and soft tokens, trained": sum(t.numel() for t in pipeline.trainable().values()),
        "generator, frozen": parameters(pipeline.parts.generator),
        "tokens of a stream": pipeline.stream.num_tokens,
    }
    for row, count in counted.items():
        cells = re.search(rf"^\| {row} \| ([\d,]+) \| ([\d,]+) \|$", README, flags=re.MULTILINE)
        assert cells, row
        assert cells[column + 1] == f"{count:,}", row


def test_the_readme_s_matrix_is_what_the_command_writes() -> None:
    """Of the parts that this package brings itself."""
    registry = installed()
    own = {
        kind: {
            name: entry
            for name, entry in getattr(registry.catalogue, kind).items()
            if registry.owners[kind, name].startswith("modalign:")
        }
        for kind in ("vlms", "encoders", "generators", "space_maps")
    }
    table = matrix(own["vlms"], own["encoders"], own["generators"], own["space_maps"].values())
    written = README.partition("<!-- pairs -->\n")[2].partition("<!-- /pairs -->")[0]
    assert written == table
