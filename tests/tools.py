"""Programs that a machine may lack: what needs one is listed as not run, or fails where everything is demanded."""

import os
import shutil

import pytest


def debian_program(name: str, package: str) -> str:
    """Return the path of a program from a Debian package.

    Without it the test is skipped with a reason that `make test` prints; with TEST_EVERYTHING set, as in continuous
    integration, it fails.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    reason = f"not run: needs {name} from the Debian package {package}"
    if os.environ.get("TEST_EVERYTHING"):
        pytest.fail(reason)
    pytest.skip(reason)
