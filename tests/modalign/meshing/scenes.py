"""Procedural objects whose true colours are known everywhere, and pictures of them."""

from __future__ import annotations

import numpy as np
import trimesh

from modalign import Mesh
from modalign.meshing import View
from modalign.rendering import cameras
from modalign.rendering.cameras import look
from modalign.rendering.rasteriser import intersector

HELD_OUT = [
    look(0.37 + k * np.pi / 2, pitch, 2.0, np.radians(40))
    for k in range(2)
    for pitch in (-0.5, 0.6)
]


def checker(points):
    """Colours (N, 3) at points (N, 3): a checker, waves and a step, with sharp edges."""
    x, y, z = 20 * np.asarray(points, dtype=float).T
    check = np.sin(x) * np.sin(y) * np.sin(z) > 0
    return np.stack([0.1 + 0.8 * check, 0.5 + 0.4 * np.sin(2 * z), 0.3 + 0.5 * (x > 0)], axis=1)


def torus(major=80, minor=40, colors=checker):
    shape = trimesh.creation.torus(0.35, 0.13, major_sections=major, minor_sections=minor)
    return Mesh(shape.vertices, shape.faces, colors(shape.vertices))


def sphere(radius=0.4, subdivisions=3, inward=False):
    shape = trimesh.creation.icosphere(subdivisions, radius)
    faces = shape.faces[:, ::-1] if inward else shape.faces
    return Mesh(shape.vertices, faces, np.full((len(shape.vertices), 3), 0.5))


def together(*meshes):
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]),
        np.concatenate([mesh.vertex_colors for mesh in meshes]),
    )


def without(mesh, place, radius):
    """The mesh with a hole around a place."""
    centre = mesh.vertices[mesh.faces].mean(axis=1)
    keep = np.linalg.norm(centre - np.asarray(place), axis=1) > radius
    return Mesh(mesh.vertices, mesh.faces[keep], mesh.vertex_colors)


def picture(mesh, camera, color, size=192, fine=3):
    """A view of the mesh; color(triangles, weights, points) says how each hit point looks."""
    triangle, weights = intersector(mesh.vertices, mesh.faces)(camera, size * fine)
    hit = triangle >= 0
    triangle, weights = triangle[hit], weights[hit]
    points = (mesh.vertices[mesh.faces[triangle]] * weights[..., None]).sum(axis=1)
    drawn = np.zeros((len(hit), 4))
    drawn[hit, :3], drawn[hit, 3] = color(triangle, weights, points), 1
    drawn = drawn.reshape(size, fine, size, fine, 4).mean(axis=(1, 3))
    return View(camera, drawn[..., :3], drawn[..., 3])


def views(mesh, count=40, size=192, colors=checker):
    """What a perfect generator would show: the true colours from all sides."""
    return [
        picture(mesh, camera, lambda _, __, points: colors(points), size)
        for camera in cameras.sphere(count)
    ]


def psnr(mesh, color, truth):
    """Peak signal to noise ratio in dB over pixels that the object covers, of held-out views."""
    error = []
    for camera in HELD_OUT:
        true = picture(truth, camera, lambda _, __, points: checker(points))
        drawn = picture(mesh, camera, color)
        inside = (true.alpha > 0.999) & (drawn.alpha > 0.999)
        error.append(np.square(true.color - drawn.color)[inside].mean())
    return -10 * np.log10(np.mean(error))


def vertex_coloured(mesh):
    return lambda triangle, weights, _: (
        mesh.vertex_colors[mesh.faces[triangle]] * weights[..., None]
    ).sum(axis=1)


def painted(asset):
    return lambda triangle, weights, _: asset.colors_at(
        (asset.uv[asset.faces[triangle]] * weights[..., None]).sum(axis=1)
    )
