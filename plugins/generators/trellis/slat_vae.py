"""The VAE of the structured latent: a windowed transformer over voxels, and its heads.

Legend: N voxels, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import WindowedBlock, final_norm, init_transformer, init_zero, trunk_dtype
from .embedders import embed_positions
from .flexicubes import MESH_CHANNELS
from .layers import SparseSubdivideBlock3d
from .sparse import SparseTensor


class SparseTransformer(nn.Module):
    """Voxel features through windowed attention; every other block shifts its windows by half.

    Args:
        resolution: of the voxel grid; heads need it, the trunk reads coordinates alone.
        window_size: side of a window in voxels.
    """

    def __init__(
        self,
        *,
        resolution: int,
        in_channels: int,
        model_channels: int,
        num_blocks: int,
        num_heads: int,
        mlp_ratio: float,
        window_size: int,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.window_size = window_size
        self.input_layer = nn.Linear(in_channels, model_channels)
        self.blocks = nn.ModuleList(
            WindowedBlock(model_channels, num_heads, mlp_ratio) for _ in range(num_blocks)
        )
        init_transformer(self)

    def trunk(self, x: SparseTensor) -> SparseTensor:
        """Features (N, model_channels), in the type of the input."""
        h = self.input_layer(x.feats)
        h = h + embed_positions(x.at.coords[:, 1:], h.shape[1])
        h = h.to(trunk_dtype(self.blocks))
        for number, block in enumerate(self.blocks):
            shift = self.window_size // 2 * (number % 2)
            h = block(h, x.at.windows(self.window_size, shift))
        return x.replace(h.to(x.feats.dtype))


class SLatEncoder(SparseTransformer):
    """Voxel features (projected image features) to mean and log variance of the latent."""

    def __init__(
        self,
        *,
        resolution: int,
        in_channels: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int,
        mlp_ratio: float = 4,
        window_size: int = 8,
    ) -> None:
        super().__init__(
            resolution=resolution,
            in_channels=in_channels,
            model_channels=model_channels,
            num_blocks=num_blocks,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            window_size=window_size,
        )
        self.out_layer = nn.Linear(model_channels, latent_channels * 2)
        init_zero(self.out_layer)

    def forward(self, x: SparseTensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, both (N, latent_channels)."""
        mean, logvar = self.out_layer(final_norm(self.trunk(x).feats)).chunk(2, dim=-1)
        return mean, logvar


class SLatMeshDecoder(SparseTransformer):
    """Latent to the 101 numbers per voxel, at four times the resolution, that make a mesh.

    Args:
        num_groups: of the group norms in the two subdivisions; 32 in the released models, must
            divide model_channels / 8.
    """

    def __init__(
        self,
        *,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int,
        mlp_ratio: float = 4,
        window_size: int = 8,
        num_groups: int = 32,
    ) -> None:
        super().__init__(
            resolution=resolution,
            in_channels=latent_channels,
            model_channels=model_channels,
            num_blocks=num_blocks,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            window_size=window_size,
        )
        self.upsample = nn.ModuleList(
            [
                SparseSubdivideBlock3d(model_channels, model_channels // 4, num_groups),
                SparseSubdivideBlock3d(model_channels // 4, model_channels // 8, num_groups),
            ]
        )
        self.out_layer = nn.Linear(model_channels // 8, MESH_CHANNELS)
        init_zero(self.out_layer)

    @property
    def mesh_resolution(self) -> int:
        """Cells per side of the grid the mesh is extracted from."""
        return int(self.resolution * 2 ** len(self.upsample))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features (64 N, 101), see `flexicubes.MeshAttributes`."""
        h = self.trunk(x)
        dtype = trunk_dtype(self.blocks)
        h = h.replace(h.feats.to(dtype))
        for block in self.upsample:
            h = block(h)
        return h.replace(self.out_layer(h.feats.to(x.feats.dtype)))
