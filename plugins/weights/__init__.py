"""The mini weights, as safetensors."""
