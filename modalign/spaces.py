"""Token spaces: which lead to which, and why others do not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from modalign.specs import SpaceMap, StreamMap
from modalign.tokens import TokenStream, TokenStreamSpec


@dataclass(frozen=True)
class Route:
    """How streams of `source` become streams of `target`: maps in turn, forward or inverse.

    After each map, and at the end, groups that nobody reads any more are dropped.
    """

    source: TokenStreamSpec
    target: TokenStreamSpec
    maps: tuple[tuple[SpaceMap, bool], ...] = ()

    @property
    def one_way(self) -> bool:
        """Whether something is lost: a map has no inverse, or groups are dropped."""
        end = self.source
        for space_map, forward in self.maps:
            start, reached = _ends(space_map, forward)
            if space_map.one_way or start.groups != end.groups:
                return True
            end = reached
        return end.groups != self.target.groups

    @property
    def words(self) -> str:
        """The route in words: "the same space", or what is done to the tokens."""
        done = [
            f"{'' if forward else 'inverse of '}{space_map.summary or space_map.name}"
            for space_map, forward in self.maps
        ]
        end = _ends(*self.maps[-1])[1] if self.maps else self.source
        dropped = [name for name in end.names if name not in self.target.names]
        if dropped:
            done.append(f"drops {', '.join(dropped)}")
        return "; ".join(done) or "the same space"

    def build(self, **options: Any) -> StreamMap:
        """The function that carries streams; `options` (weights, device, dtype) go to the maps."""
        steps: list[StreamMap] = []
        for space_map, forward in self.maps:
            start, _ = _ends(space_map, forward)
            there, back = space_map.build(**options)
            step = there if forward else back
            assert step is not None  # `route` never goes against a one-way map
            steps += [_dropper(start), step]
        steps.append(_dropper(self.target))

        def carry(stream: TokenStream) -> TokenStream:
            for step in steps:
                stream = step(stream)
            return stream

        return carry


def route(
    source: TokenStreamSpec, target: TokenStreamSpec, maps: Iterable[SpaceMap]
) -> Route | None:
    """The shortest way from streams of `source` to streams of `target`, or None.

    Maps are used in both directions, one-way maps in theirs. Where a layout asks for fewer groups
    of the same space, the others are dropped.
    """
    known = list(maps)
    queue = deque([Route(source, source)])
    seen = [source]
    while queue:
        here = queue.popleft()
        if _covers(here.target, target):
            return Route(source, target, here.maps)
        for space_map in known:
            for forward in (True,) if space_map.one_way else (True, False):
                start, end = _ends(space_map, forward)
                if _covers(here.target, start) and end not in seen:
                    seen.append(end)
                    queue.append(Route(source, end, (*here.maps, (space_map, forward))))
    return None


def refusal(source: TokenStreamSpec, target: TokenStreamSpec) -> str:
    """Why nothing carries streams of `source` to `target`, in one clause."""
    if source.space == target.space:
        return (
            "they share a space and differ in layout: groups can be dropped, not added or reshaped"
        )
    if source.encoder != target.encoder:
        return (
            f"{source.encoder!r} and {target.encoder!r} are different "
            "networks, whose tokens mean different things even where shapes agree"
        )
    if source.normalisation != target.normalisation:
        return (
            f"the same network, but {source.normalisation or 'plain'!r} and "
            f"{target.normalisation or 'plain'!r} tokens are other numbers, and no "
            "installed map joins them"
        )
    return "the same network at another resolution: other patches, other numbers"


def _ends(space_map: SpaceMap, forward: bool) -> tuple[TokenStreamSpec, TokenStreamSpec]:
    ends = space_map.source_stream, space_map.target_stream
    return ends if forward else ends[::-1]


def _covers(have: TokenStreamSpec, asked: TokenStreamSpec) -> bool:
    """Whether `asked` is `have`, or some of its groups in the same order."""
    kept = tuple(group for group in have.groups if group in asked.groups)
    return have.space == asked.space and kept == asked.groups


def _dropper(asked: TokenStreamSpec) -> StreamMap:
    def drop(stream: TokenStream) -> TokenStream:
        return {name: stream[name] for name in asked.names}

    return drop
