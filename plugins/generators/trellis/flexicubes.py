"""Meshes."""

MESH_CHANNELS = 101
