"""`python -m compressor` is `ttgpt`."""

from compressor.threads import wait_briefly


def main() -> None:
    """Run the command line."""
    wait_briefly()
    from compressor.cli import main as run  # brings torch, whose threads read the environment once

    run()


if __name__ == "__main__":
    main()
