"""The page that goes with saved weights: what they are, made of what, under which licences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modalign.contract import groups
from modalign.recipe import Recipe
from modalign.tokens import TokenStreamSpec

_TAGS = {"mesh": "text-to-3d", "picture": "text-to-image"}


def model_card(
    recipe: Recipe, stream: TokenStreamSpec, about: Mapping[str, Any], parameters: int
) -> str:
    """A Markdown page with the Hub's header; `about` as `Pipeline.save_pretrained` stores it."""
    parts: Mapping[str, Mapping[str, str]] = about.get("parts", {})
    made = parts.get("generators", {}).get("produces", "")
    header = ["---", "library_name: modalign", "tags:", "- modalign", f"- {recipe.name}"]
    if made in _TAGS:
        header.append(f"pipeline_tag: {_TAGS[made]}")
    header.append("---")
    rows = [
        f"| {kind.removesuffix('s')} | `{part['name']}` | {part['source']} | {part['license']} |"
        for kind, part in parts.items()
    ]
    template = about.get("prompt_template")
    lines = [
        *header,
        "",
        f"# {recipe.name}",
        "",
        f"{recipe.summary or 'A head and its soft tokens'}. {parameters:,} trained parameters"
        + (f"; {recipe.reference}." if recipe.reference else "."),
        "",
        "```python",
        "import modalign",
        "",
        'pipeline = modalign.from_pretrained("<this repository, or a folder>")',
        'asset = pipeline.generate("a red mug")[0]'
        if made
        else 'stream = pipeline.align("a red mug")',
        "```",
        "",
        "## What it was made for",
        "",
        "| part | name | source | licence |",
        "|---|---|---|---|",
        *rows,
        "",
        f"- tokens: `{stream.space}`: {groups(stream)}",
        f"- objective: {recipe.objective.name}, prediction of {recipe.flow.prediction}",
        f"- soft tokens: {recipe.num_soft_tokens}",
        f"- null condition: {about.get('null_condition', 'zeros')}",
        f"- preprocessing of targets: {about.get('preprocessing') or 'the encoder’s own'}",
    ]
    if template:
        lines.append(f"- prompt template: `{template!r}`")
    if training := about.get("training"):
        told = ", ".join(f"{key} {value}" for key, value in training.items())
        lines.append(f"- training: {told}")
    lines += [
        "",
        "The file `model.safetensors` holds all of this in its header. Frozen parts are not in it;",
        "their licences are their own.",
    ]
    return "\n".join(lines) + "\n"
