"""The recipes that ship with modalign: data and a hook."""
