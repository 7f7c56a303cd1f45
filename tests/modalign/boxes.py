"""A box that is red above and blue in front, with vertex colours and with a texture."""

from __future__ import annotations

import numpy as np

from modalign import Mesh
from modalign.assets import TexturedMesh

RED, BLUE, GREY = (230, 20, 10), (20, 40, 200), (120, 120, 120)


def sides():
    """A box by sides: corners (24, 3), faces (12, 3), and colours (6, 3) red above, blue before."""
    corners, faces = [], []
    for axis in range(3):
        for sign in (-1, 1):
            square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.3
            side = np.insert(square, axis, 0.3 * sign, axis=1)
            outward = np.cross(side[1] - side[0], side[2] - side[0])[axis] * sign > 0
            start = len(corners) * 4
            order = (0, 1, 2, 0, 2, 3) if outward else (0, 2, 1, 0, 3, 2)
            faces += (start + np.array(order)).reshape(2, 3).tolist()
            corners.append(side)
    colors = np.full((6, 3), GREY)
    colors[5], colors[2] = RED, BLUE  # +z is up; -y is what glTF calls the front
    return np.concatenate(corners), np.array(faces), colors


def coloured():
    corners, faces, colors = sides()
    return Mesh(corners, faces, np.repeat(colors / 255, 4, axis=0))


def painted():
    """The same with a texture: each side has a square of its own."""
    corners, faces, colors = sides()
    texture = np.repeat(colors.astype(np.uint8)[:, None], 16, axis=1).repeat(16, axis=0)
    place = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]])
    uv = np.concatenate([(place + (0, side)) / (1, 6) for side in range(6)])
    return TexturedMesh(corners, faces, uv, texture)
