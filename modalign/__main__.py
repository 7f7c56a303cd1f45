"""`python -m modalign`, which `torchrun -m modalign` also starts."""

from modalign.cli import main

main()
