"""How the tiny models of this room are made. Not needed to use it."""
