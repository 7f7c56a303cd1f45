"""The judge is right about the world's own meshes, and looks at what can be seen."""

from __future__ import annotations

import numpy as np
import pytest
from modalign_plugins.datasets.toybox import FAMILIES, Toybox
from modalign_plugins.suites.judge import (
    RESOLUTION,
    Judge,
    distances,
    occupied,
    reachable,
    visible_points,
)

from modalign import Mesh

WORLD = Toybox()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(WORLD, per_family=10)


def test_the_judge_knows_true_meshes_of_unseen_objects(judge: Judge) -> None:
    """One object of every family with a colour that no exemplar of the family wears, bent a bit.

    With 40 exemplars per family and clean meshes the judge is right about 400 of 400.
    """
    rng = np.random.default_rng(0)
    left, index, wrong = set(FAMILIES), 0, []
    while left:
        toy = WORLD.object(index, "compositional")
        index += 1
        if toy.family not in left:
            continue
        left.remove(toy.family)
        vertices, faces, colors = toy.mesh(24)
        vertices = 0.7 * (vertices + rng.normal(size=vertices.shape) * 0.008) + 0.1
        verdict = judge(Mesh(vertices, faces, colors))
        if verdict != type(verdict)(toy.family, toy.color, toy.second.color):
            wrong.append((verdict, toy))
    assert not wrong


def test_recoloured_parts_change_the_colours_only(judge: Judge) -> None:
    toy = WORLD.object(3)
    verdicts = []
    for shown in (
        toy,
        toy.recolored(toy.parts[0].name, "cyan"),
        toy.recolored(toy.second.name, "pink"),
    ):
        verdicts.append(judge(Mesh(*shown.mesh(24))))
    assert {verdict.family for verdict in verdicts} == {toy.family}
    assert verdicts[1].color == "cyan"
    assert verdicts[1].second == verdicts[0].second
    assert verdicts[2].second == "pink"
    assert verdicts[2].color == verdicts[0].color


def test_a_verdict_repeats(judge: Judge) -> None:
    mesh = Mesh(*WORLD.object(1).mesh(20))
    assert judge(mesh) == judge(mesh)


def ball(radius: float, color: tuple[float, float, float], inside_out: bool = False) -> Mesh:
    import trimesh

    sphere = trimesh.creation.icosphere(4, radius)
    faces = sphere.faces[:, ::-1] if inside_out else sphere.faces
    return Mesh(sphere.vertices, faces, np.tile(color, (len(sphere.vertices), 1)))


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=False)]),
        np.concatenate([mesh.vertex_colors for mesh in meshes]),
    )


def test_walls_of_an_enclosed_cavity_are_not_seen() -> None:
    """A hollow ball: the inner wall faces the cavity, where no path from outside leads."""
    hollow = joined(ball(0.4, (1, 0, 0)), ball(0.32, (0, 0, 1), inside_out=True))
    points, colors = visible_points(hollow, 8000, np.random.default_rng(0))
    assert colors[:, 2].max() == 0
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.5, atol=0.01)
    _, both = visible_points(ball(0.3, (0, 1, 0), inside_out=True), 100, np.random.default_rng(0))
    assert len(both) == 100


def test_points_are_uniform_in_area() -> None:
    """Two triangles, one with nine times the area of the other."""
    corners = np.array([[0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1.0]])
    colors = np.repeat([[1.0, 0, 0], [0, 1.0, 0]], 3, axis=0)
    mesh = Mesh(corners, np.array([[0, 1, 2], [3, 4, 5]]), colors)
    points, shown = visible_points(mesh, 20_000, np.random.default_rng(0))
    assert shown[:, 0].mean() == pytest.approx(0.9, abs=0.01)
    low = points[shown[:, 0] == 1]
    # The centroid of a triangle is the mean of its corners; the longest side is scaled to 1.
    assert low[:, :2].mean(axis=0) == pytest.approx([-1 / 6, -1 / 6], abs=0.01)


def test_a_mesh_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="no area"):
        visible_points(
            Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]), np.zeros((3, 3))),
            10,
            np.random.default_rng(0),
        )


def test_distances_count_steps_over_faces() -> None:
    cells = np.zeros((9, 9, 9), bool)
    cells[4, 4, 4] = True
    found = distances(cells)
    steps = np.abs(np.indices(cells.shape) - 4).sum(axis=0)
    np.testing.assert_array_equal(found, np.minimum(steps, 4))


def test_air_inside_a_shell_is_not_reachable() -> None:
    axis = np.arange(RESOLUTION)
    index = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    shell = np.abs(index - 12).max(axis=-1) == 5
    free = reachable(shell)
    assert free[0, 0, 0]
    assert not free[12, 12, 12]
    shell[12, 12, 17] = False
    assert reachable(shell)[12, 12, 12]
    assert not reachable(shell)[shell].any()


def test_points_fall_into_their_cells() -> None:
    cells = occupied(np.array([[-0.5, -0.5, -0.5], [0.5, 0.0, 0.49]], np.float32))
    assert [tuple(map(int, cell)) for cell in np.argwhere(cells)] == [
        (0, 0, 0),
        (RESOLUTION - 1, RESOLUTION // 2, RESOLUTION - 1),
    ]
