"""What all assets in space can do once they can be rendered."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from modalign.assets.turntable import FRAMES, write_turntable
from modalign.assets.viewing import Background, as_pixels, backdrop, cameras_for, write_preview
from modalign.rendering.cameras import Camera

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from modalign.specs import ProgressCallback


class Shown(ABC):
    """An asset with a `render` is shown as a strip of views or as a film."""

    @abstractmethod
    def render(
        self,
        views: int = 4,
        size: int = 256,
        *,
        cameras: Sequence[Camera] | None = None,
        background: Background = 1.0,
    ) -> NDArray[np.uint8]:
        """Pictures (V, size, size, 3): from `cameras`, or from `views` evenly spaced sides.

        `background` is a grey or RGB in 0..1, as displayed.
        """

    def preview(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG of four views side by side.

        Raises:
            OSError: the file cannot be written.
        """
        write_preview(self, path)

    def turntable(
        self,
        path: str | os.PathLike[str],
        *,
        frames: int = FRAMES,
        size: int = 256,
        background: Background = 1.0,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Write a film of one turn; see `modalign.assets.turntable.write_turntable`."""
        write_turntable(
            self, path, frames=frames, size=size, background=background, progress=progress
        )


class Translucent(Shown):
    """An asset whose picture is light on black and how much of the black it covers."""

    SUPERSAMPLING: ClassVar[int] = 1

    @abstractmethod
    def view(self, camera: Camera, size: int) -> tuple[Tensor, Tensor]:
        """A picture on black (size, size, 3) and its cover (size, size), both differentiable.

        Over a background b it is `picture + (1 - cover) * b`. Colours may exceed 1.
        """

    def render(
        self,
        views: int = 4,
        size: int = 256,
        *,
        cameras: Sequence[Camera] | None = None,
        background: Background = 1.0,
    ) -> NDArray[np.uint8]:
        """Pictures (V, size, size, 3): from `cameras`, or from `views` evenly spaced sides.

        `background` is a grey or RGB in 0..1, as displayed.
        """
        import torch

        behind = backdrop(background)
        pictures = []
        for camera in cameras_for(views, size, cameras):
            with torch.no_grad():
                color, cover = self.view(camera, size * self.SUPERSAMPLING)
            over = color + (1 - cover)[..., None] * color.new_tensor(behind)
            pictures.append(over.cpu().double().numpy())
        return as_pixels(pictures, size)
