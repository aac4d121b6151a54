"""The command line in this process."""

import pytest

from compressor.cli import main


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command refuses with, by the exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (exit_.value.code, printed.out) == (2, "")
    assert len(printed.err.splitlines()) == 1, printed.err
    return printed.err
