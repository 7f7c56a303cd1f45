"""Token-stream networks."""
