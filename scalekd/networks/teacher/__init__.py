"""The frozen teacher and its tail: all that it runs after its penultimate feature."""
