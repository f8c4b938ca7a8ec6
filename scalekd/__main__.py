"""`python -m scalekd`, which is what torchrun starts."""

from scalekd.cli.main import main

main()
