"""Ctrl-C is one line and exit code 130, whenever it comes, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compressor import huggingface
from compressor.process.interrupt import held
from tests.conftest import TOKENIZER, tiny_model, write_artifact

ROOT = Path(__file__).parents[3]
# Runs a module as `python -m` does, and sends a signal to itself when it is about to import another.
IMPORTING = """
import os, runpy, signal, sys
run, imported, number = sys.argv[1], sys.argv[2], getattr(signal, sys.argv[3])
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == imported:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["ttgpt", *sys.argv[4:]]
runpy.run_module(run, run_name="__main__")
"""
# Runs the command line and says when a command begins.
RUNNING = """
import os, runpy, signal, sys, threading, time
def tell():
    while getattr(signal.getsignal(signal.SIGINT), "__name__", "") != "_stop":
        time.sleep(0.001)
    os.write(2, b"ready\\n")
threading.Thread(target=tell, daemon=True).start()
sys.argv = ["ttgpt", *sys.argv[1:]]
runpy.run_module("compressor", run_name="__main__")
"""


def _run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    "imported", ["compressor.cli", "typer", "rich", "numpy", "compressor.artifact.folder", "pydantic"]
)
def test_while_the_command_lines_libraries_load(imported: str) -> None:
    process = _run(IMPORTING, "compressor", imported, "SIGINT", "inspect", "nowhere")
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("imported", ["service.server", "uvicorn", "pydantic", "service.settings"])
def test_while_the_services_libraries_load(imported: str, name: str, code: int, tmp_path: Path) -> None:
    process = _run(IMPORTING, "service", imported, name, "nowhere", "--uds", tmp_path / "socket")
    out, err = process.communicate()
    assert (process.returncode, out, err.splitlines()[-1]) == (code, "", "interrupted")
    assert len(err.splitlines()) == 1 + (imported == "uvicorn")  # it listens by then
    assert not (tmp_path / "socket").exists()


LONG = {
    "model": {"vocab_size": 16384, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2},
    **{"tokenizer": "gpt2-mini", "tokens": 10**9, "batch_tokens": 1024, "phases": [{"until": 1.0, "context": 64}]},
}
COMMANDS = {
    "compress": ["compress", "{checkpoint}", "--method", "direction_ae", "--epochs", "100000", "--out", "{folder}/out"],
    "budget": ["compress", "{checkpoint}", "--ratio", "3", "--out", "{folder}/out"],
    "healing": ["compress", "{checkpoint}", "--ratio", "2", "--heal-tokens", "9999999", "--out", "{folder}/out"],
    "pretrain": ["pretrain", "--config", "{config}", "--text", "{text}", "--out", "{folder}/out"],
    "evaluate": ["evaluate", "{artefact}"],
}


@pytest.mark.parametrize(("command", "seconds"), [*((command, 1.0) for command in COMMANDS), ("compress", 0.0)])
def test_while_a_command_works(command: str, seconds: float, tmp_path: Path) -> None:
    huggingface.export(tiny_model(), TOKENIZER, tmp_path / "checkpoint")
    folder = tmp_path / "folder"
    folder.mkdir()
    places = {"checkpoint": tmp_path / "checkpoint", "folder": folder, "text": tmp_path / "books.txt"}
    places["text"].write_text((huggingface.EMBEDDED_FOLDER / "validation.txt").read_text() * 30)
    places["config"] = tmp_path / "long.json"
    places["config"].write_text(json.dumps(LONG))
    places["artefact"] = write_artifact(tmp_path / "artefact", tiny_model())
    arguments = [part.format(**places) for part in COMMANDS[command]]
    process = _run(RUNNING, *arguments)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(seconds)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        os.kill(process.pid, signal.SIGINT)  # and again, as one does who waits
    out, err = process.communicate()
    assert "Traceback" not in err
    assert process.returncode in (130, 0)  # 0 if it was done already
    if process.returncode == 130:
        assert (out, err.splitlines()[-1]) == ("", "interrupted")
        assert len(err.splitlines()) == 1 or command == "pretrain"
    assert [path.name for path in folder.iterdir() if path.name != "out.run"] == []  # whose checkpoints are kept


def test_a_signal_that_is_held_comes_behind_the_block() -> None:
    def interrupted() -> None:
        with held():
            signal.raise_signal(signal.SIGINT)
            inside.append("still")

    before, inside = signal.getsignal(signal.SIGINT), list[str]()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert inside == ["still"]
    assert signal.getsignal(signal.SIGINT) is before
