"""The built-in plugins, reached through the same entry points as anybody's."""
