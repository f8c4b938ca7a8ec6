"""The command line: names to functions, no logic."""

from scalekd.cli.main import main

__all__ = ["main"]
