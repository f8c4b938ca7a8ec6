"""`python -m scalekd`, which is what torchrun starts."""

from scalekd.cli import main

main()
