"""Programs that a machine may lack: what needs one is listed as not run, or fails where everything is demanded."""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import NoReturn

import pytest


def debian_program(name: str, package: str) -> str:
    """Return the path of a program from a Debian package.

    Without it the test is not run.
    """
    return shutil.which(name) or not_run(f"{name} from the Debian package {package}")


def python_headers() -> Path:
    """Return the folder with Python.h, which compilers need; without it the test is not run."""
    folder = Path(sysconfig.get_path("include"))
    return folder if (folder / "Python.h").is_file() else not_run("Python.h, on Debian from the package python3-dev")


def not_run(what: str) -> NoReturn:
    """Skip with a reason that `make test` prints, or fail with it where TEST_EVERYTHING is set."""
    reason = f"not run: needs {what}"
    if os.environ.get("TEST_EVERYTHING"):
        pytest.fail(reason)
    pytest.skip(reason)
