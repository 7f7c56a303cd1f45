"""How good generated tokens and assets are."""
