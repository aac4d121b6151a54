"""A signal that stops `ttgpt` leaves no temporary file, prints one line and gives the usual exit code."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compressor import huggingface
from tests.conftest import TOKENIZER, tiny_model
from tests.process_one import handles, process_one
from tests.service.conftest import wait_until

TTGPT = [sys.executable, "-m", "compressor"]
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@pytest.fixture(scope="module")
def compress(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that compresses a tiny checkpoint, but for its --out."""
    folder = tmp_path_factory.mktemp("stopping")
    huggingface.export(tiny_model(), TOKENIZER, folder / "checkpoint")
    (folder / "text.txt").write_text("The sea was calm and the old man slept. " * 20)
    text = str(folder / "text.txt")
    return [*TTGPT, "compress", str(folder / "checkpoint"), "--method", "quantize", "--text", text, "--out"]


@contextmanager
def _running(command: list[str], **options: bool) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as child:  # type: ignore[call-overload]
        try:
            yield child
        finally:
            child.kill()


@SIGNALS
def test_while_it_is_imported(number: int) -> None:
    with _running([*TTGPT, "--version"]) as child:
        wait_until(lambda: handles(child.pid, signal.SIGHUP) or child.poll() is not None)
        child.send_signal(number)
        assert (child.communicate(timeout=60)[1], child.returncode) == ("interrupted\n", 128 + number)


@SIGNALS
def test_while_it_writes(compress: list[str], tmp_path: Path, number: int) -> None:
    with _running([*compress, str(tmp_path / "artefact")]) as child:
        while not (tmp_path / f".artefact.unfinished-{child.pid}").exists():
            assert child.poll() is None
        child.send_signal(signal.SIGSTOP)
        child.send_signal(number)
        child.send_signal(signal.SIGCONT)
        assert (child.communicate(timeout=60)[1], child.returncode) == ("interrupted\n", 128 + number)
    assert list(tmp_path.iterdir()) == []


def test_under_nohup_it_goes_on_when_the_terminal_goes() -> None:
    with _running(["nohup", *TTGPT, "--version"]) as child:
        wait_until(lambda: handles(child.pid, signal.SIGTERM) or child.poll() is not None)
        child.send_signal(signal.SIGHUP)
        child.communicate(timeout=60)
    assert child.returncode == 0


@SIGNALS
def test_as_process_1(compress: list[str], tmp_path: Path, number: int) -> None:
    with process_one([*compress, str(tmp_path / "artefact")], os.environ) as container:
        wait_until(lambda: container.handles(signal.SIGHUP))
        assert container.stop(number, seconds=60) == 128 + number
