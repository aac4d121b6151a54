"""What is process 1 of a container ends when it is told to, also while it waits or works."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import ROOT, one, pod, rendered
from tests.process_one import process_one
from tests.service.conftest import wait_until

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["compressor"]["entrypoint"]
JOB = one(rendered("base"), "Job", "ttgpt-compress")["spec"]["template"]["spec"]["containers"][0]["command"]
WAIT, COPY = (pod(rendered(overlay))["initContainers"][0]["command"] for overlay in ("overlays/dev", "overlays/prod"))
# The real `ttgpt`, but for an import of the command line that lasts; and a copy that does.
STAND_INS = {"ttgpt": f"exec {sys.executable} -m compressor --version", "cp": "exec sleep 600"}


@pytest.mark.parametrize("command", [COMPOSE, JOB, WAIT, COPY], ids=["compose", "job", "wait", "copy"])
def test_it_answers_sigterm(command: list[str], tmp_path: Path) -> None:
    for name, line in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        **{"MODEL": "gpt2-mini", "OPTIONS": "--method quantize", "OUT": str(tmp_path / "out")},
        "TTGPT_MODELS": str(tmp_path / "missing"),
    }
    with process_one([word.replace("$$", "$") for word in command], environment) as container:
        wait_until(lambda: container.handles(signal.SIGTERM))
        assert container.stop(signal.SIGTERM, seconds=30) == 128 + signal.SIGTERM


def test_without_a_handler_process_1_is_deaf() -> None:
    """Which is what the other tests are about."""
    with process_one(["/bin/sh", "-c", "sleep 600; true"], {}) as container:
        wait_until(lambda: len(container.pids()) == 2)
        with pytest.raises(subprocess.TimeoutExpired):
            container.stop(signal.SIGTERM, seconds=2)
