"""The toy world's evaluation: how near the tokens are, and whether the meshes are what was asked.

`alignment` compares streams, `end_to_end` meshes, `judge` names what a mesh shows.
"""

from modalign import SuiteSpec, hookimpl

from . import alignment, end_to_end

__all__ = ["modalign_suites"]


@hookimpl
def modalign_suites() -> list[SuiteSpec]:
    """Both suites."""
    return [
        SuiteSpec(
            name="alignment",
            summary="cosine, MSE, norm ratio and retrieval of held-out toys, next to baselines",
            run=alignment.run,
        ),
        SuiteSpec(
            name="end-to-end",
            summary="share of meshes of the asked family and colours, on unseen combinations",
            run=end_to_end.run,
            requires=("skimage",),
        ),
    ]
