"""The networks of a pipeline, loaded when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .config import Normalization

# Several times the mini, a fifth of the smallest released flow model.
KEPT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class StoredNetwork:
    """A network in files that were found and checked.

    Attributes:
        num_bytes: what it takes once it is loaded.
        load: reads it; frozen, on its device.
    """

    num_bytes: int
    load: Callable[[], nn.Module]


class Models:
    """The networks of one pipeline by role, frozen, and how their latent is scaled.

    One in files is loaded when it is first used. If it does not fit into `KEPT_BYTES` beside those
    that are loaded, these are freed first: of a large pipeline one network is there at a time, of
    a small one all of them stay. Its last network stays until another one is used. What was freed
    is read again, as a rule from the page cache.

    Args:
        roles: of all networks, as pipeline.json calls them.
        find: the checked files of a role; raises `WeightsError`.
        built: networks that lie in no file. They are never freed.
    """

    def __init__(
        self,
        roles: Iterable[str],
        normalization: Normalization,
        device: str | torch.device,
        *,
        find: Callable[[str], StoredNetwork] | None = None,
        built: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.roles = tuple(roles)
        self.normalization = normalization
        self.device = torch.device(device)
        self._find = find
        self._stored: dict[str, StoredNetwork] = {}
        self._loaded: dict[str, nn.Module] = dict(built or {})

    def require(self, *roles: str) -> None:
        """Check that these networks can be loaded, without loading them.

        Raises:
            WeightsError: a file is missing, damaged or of another network.
        """
        for role in roles:
            if role not in self._loaded and role not in self._stored:
                assert self._find is not None, f"no network was built for {role}"
                self._stored[role] = self._find(role)

    def network(self, role: str) -> Any:
        """The network of a role, loaded.

        Raises:
            WeightsError: a file is missing, damaged or of another network.
        """
        self.require(role)
        if role not in self._loaded:
            stored = self._stored[role]
            held = sum(self._stored[other].num_bytes for other in self._loaded)
            if held + stored.num_bytes > KEPT_BYTES:
                self._loaded.clear()
            self._loaded[role] = stored.load()
        return self._loaded[role]

    @property
    def loaded(self) -> tuple[str, ...]:
        """Roles of the networks that take memory now."""
        return tuple(self._loaded)

    @property
    def structure_flow(self) -> Any:
        """`SparseStructureFlowModel`."""
        return self.network("sparse_structure_flow_model")

    @property
    def structure_decoder(self) -> Any:
        """`SparseStructureDecoder`."""
        return self.network("sparse_structure_decoder")

    @property
    def latent_flow(self) -> Any:
        """`SLatFlowModel`."""
        return self.network("slat_flow_model")

    @property
    def mesh_decoder(self) -> Any:
        """`SLatMeshDecoder`."""
        return self.network("slat_decoder_mesh")

    @property
    def gaussian_decoder(self) -> Any:
        """`SLatGaussianDecoder`."""
        return self.network("slat_decoder_gs")

    @property
    def radiance_field_decoder(self) -> Any:
        """`SLatRadianceFieldDecoder`."""
        return self.network("slat_decoder_rf")
