"""The shell commands of containers, run with stand-ins for what they call that say what they were told."""

import subprocess
from pathlib import Path

TTGPT = """#!/bin/sh
for last; do :; done
echo "$*"
mkdir "$last" && touch "$last/manifest.json"
"""
PYTHON = '#!/bin/sh\necho "$*"\n'


def run(command: list[str], environment: dict[str, str], models: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command as a container with the folder `models` as /models would; all that it calls is a stand-in."""
    programs = models.parent / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (("ttgpt", TTGPT), ("python", PYTHON)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    variables = environment | {"PATH": f"{programs}:/usr/bin:/bin"}
    placed = [word.replace("$$", "$").replace("/models", str(models)) for word in command]
    return subprocess.run(placed, env=variables, capture_output=True, text=True, check=False)
