"""Pins images of other registries: python docker/digests.py FILE... writes the digest behind every NAME:TAG.

What a tag means now is asked of its registry by Docker, so that takes Docker with buildx, and network. Images that are
pinned already are pinned anew.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# After ARG ..._IMAGE=, FROM and image: - with a tag, which build stages and our own images lack.
PINNED = r"(?:@sha256:[0-9a-f]{64})?"
IMAGE = re.compile(
    rf"^((?:ARG \w+_IMAGE=|FROM |\s+image: (?:\$\{{\w+:-)?))([a-z][\w./-]*:[\w.-]+){PINNED}", re.MULTILINE
)
# In a kustomization, where the names of ours begin with ttgpt.
NEW_TAG = re.compile(rf"^(\s+- name: (?!ttgpt)(\S+)\n\s+newTag: )([\w.-]+){PINNED}", re.MULTILINE)


def digest(image: str) -> str:
    """Return the digest of an image's manifest for all platforms, sha256:...

    Raises:
        RuntimeError: if Docker does not tell one.
    """
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", image]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    found = run.stdout.strip()
    if run.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
        raise RuntimeError(f"{image}: {run.stderr.strip() or found or 'no digest'}")
    return found


def pinned(text: str, resolve: Callable[[str], str] = digest) -> str:
    """Return the text of a Dockerfile or YAML file with every image pinned."""
    text = IMAGE.sub(lambda match: f"{match[1]}{match[2]}@{resolve(match[2])}", text)
    return NEW_TAG.sub(lambda match: f"{match[1]}{match[3]}@{resolve(f'{match[2]}:{match[3]}')}", text)


if __name__ == "__main__":
    try:
        texts = {Path(name): pinned(Path(name).read_text()) for name in sys.argv[1:]}
    except (OSError, RuntimeError) as error:
        sys.exit(f"digests: nothing is changed: {error}")
    for path, text in texts.items():
        path.write_text(text)
