"""Faster pictures that change a little: what one step computed serves the next ones too."""
