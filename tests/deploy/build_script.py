"""The shell command that compresses in a container, run with a stand-in for `ttgpt` that says what it was told."""

import subprocess
from pathlib import Path

STAND_IN = """#!/bin/sh
for last; do :; done
echo "$*"
mkdir "$last" && touch "$last/manifest.json"
"""


def run_twice(command: list[str], environment: dict[str, str], folder: Path) -> tuple[list[str], Path]:
    """Return what `ttgpt` was told in each of two runs, "" if it was not called, and where the artefact is."""
    out, programs = folder / "artefact", folder / "bin"
    programs.mkdir()
    (programs / "ttgpt").write_text(STAND_IN)
    (programs / "ttgpt").chmod(0o755)
    variables = environment | {"OUT": str(out), "PATH": f"{programs}:/usr/bin:/bin"}
    runs = [subprocess.run(command, env=variables, capture_output=True, text=True, check=True) for _ in range(2)]
    return [run.stdout.strip() for run in runs], out
