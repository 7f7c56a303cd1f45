"""From things in space to pictures; knows arrays and cameras, no assets."""
