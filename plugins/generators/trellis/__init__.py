"""TRELLIS: image tokens to a mesh, in plain PyTorch."""
