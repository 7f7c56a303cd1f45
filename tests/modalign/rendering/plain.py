"""A second implementation of splatting: every splat at every pixel, one after the other."""

from __future__ import annotations

import math

import torch


def plain_splat(xyz, covariance, opacity, color, camera, size):
    """Light (size, size, 3) and cover (size, size), by the words of the facts alone."""
    world = torch.as_tensor(camera.extrinsics).to(xyz)
    k = camera.intrinsics
    light, clear = xyz.new_zeros(size, size, 3), xyz.new_ones(size, size)
    done = torch.zeros(size, size, dtype=torch.bool)
    rows, columns = torch.meshgrid(*[torch.arange(size).to(xyz)] * 2, indexing="ij")
    seen = xyz @ world[:3, :3].T + world[:3, 3]
    for i in seen[:, 2].argsort(stable=True).tolist():
        x, y, z = seen[i]
        if z <= 0.2:
            continue
        fx, fy = k[0, 0] * size, k[1, 1] * size
        u = (x / z).clamp(-1.3 * 0.5 / k[0, 0], 1.3 * 0.5 / k[0, 0])
        v = (y / z).clamp(-1.3 * 0.5 / k[1, 1], 1.3 * 0.5 / k[1, 1])
        zero = torch.zeros_like(z)
        jacobian = torch.stack(
            [torch.stack([fx / z, zero, -fx * u / z]), torch.stack([zero, fy / z, -fy * v / z])]
        )
        flat = jacobian @ world[:3, :3] @ covariance[i] @ world[:3, :3].T @ jacobian.T
        wide = flat + 0.1 * torch.eye(2).to(xyz)
        before, after = torch.det(flat), torch.det(wide)
        if before <= 1e-6 or after <= 1e-6:
            continue
        faint = opacity[i] * (before / (after + 1e-6) + 1e-6).sqrt()
        n = 2 * torch.stack([k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]]) - 1
        px, py = ((n + 1) * size - 1) / 2
        radius = math.ceil(3 * float(torch.linalg.eigvalsh(wide)[1].sqrt()))
        inverse = torch.linalg.inv(wide)
        dx, dy = columns - px, rows - py
        power = -0.5 * (inverse[0, 0] * dx**2 + inverse[1, 1] * dy**2) - inverse[0, 1] * dx * dy
        alpha = (faint * power.exp()).clamp(max=0.99)
        counts = alpha >= 1 / 255
        for line, middle in ((columns, px), (rows, py)):  # whole blocks of 16 pixels
            first = max(0, int((float(middle) - radius) / 16)) * 16
            last = max(0, int((float(middle) + radius + 15) / 16)) * 16
            counts &= (line >= first) & (line < last)
        done |= counts & (clear * (1 - alpha) < 1e-4)
        alpha = torch.where(counts & ~done, alpha, torch.zeros_like(alpha))
        light = light + (alpha * clear)[..., None] * color[i]
        clear = clear * (1 - alpha)
    return light, 1 - clear
