"""`python -m compressor` is `ttgpt`."""

from compressor.cli import main

main()
