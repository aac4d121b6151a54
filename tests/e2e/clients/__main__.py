"""`make clients`: install the latest version of every client, and have it ask a service what its users ask.

A client works if its script ends well; what it sends by default must be accepted. It needs PyPI, npm and minutes, so it
is outside `make test`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from compressor.pages import refresh
from tests.benchmarks.serving import served
from tests.e2e.clients.report import BLOCKS, RESULTS

SCRIPTS = Path(__file__).parent / "scripts"
START_SECONDS = 120
TEMPLATE = "{role}: {content}\n\n"


class Client(NamedTuple):
    """What somebody asks with.

    Attributes:
        name: as it calls itself.
        packages: of PyPI or npm; the first one's version is told.
        script: what it does, in `scripts`.
    """

    name: str
    packages: tuple[str, ...]
    script: str

    @property
    def is_python(self) -> bool:
        """Whether it is from PyPI."""
        return self.script.endswith(".py")


CLIENTS = (
    Client("openai", ("openai",), "openai_python.py"),
    Client("openai (JavaScript)", ("openai",), "openai_javascript.mjs"),
    Client("LangChain", ("langchain-openai",), "langchain_chat.py"),
    Client("LlamaIndex", ("llama-index-llms-openai-like",), "llama_index_like.py"),
    Client("litellm", ("litellm",), "litellm_sdk.py"),
    Client("llm", ("llm",), "llm_cli.py"),
    Client("Vercel AI SDK", ("ai", "@ai-sdk/openai-compatible"), "vercel_ai.mjs"),
    Client("text-generation", ("text-generation",), "tgi.py"),
    Client("huggingface_hub", ("huggingface_hub",), "hub.py"),
    Client("guidellm", ("guidellm",), "guidellm_cli.py"),
)


def main() -> None:
    """Run the clients and keep which versions did what."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.clients", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", nargs="+", choices=[client.name for client in CLIENTS])
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "template.txt").write_text(TEMPLATE)
        template = str(folder / "template.txt")
        with served(options.model, START_SECONDS, TTGPT_CHAT_TEMPLATE=template) as (_, url):
            for client in CLIENTS:
                if options.only is None or client.name in options.only:
                    found[client.name] = tried(client, folder / client.name, url, options.model)
                    print(client.name, found[client.name], flush=True)
                    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    refresh(BLOCKS)


def tried(client: Client, folder: Path, url: str, model: Path) -> dict[str, str]:
    """Return a client's version, and whether it works or what it said last."""
    folder.mkdir()
    script = [str(SCRIPTS / client.script), url, model.name, str(model)]
    if client.is_python:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(folder / "bin" / "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *client.packages], check=True)
        told = subprocess.run([*pip, "show", client.packages[0]], check=True, capture_output=True, text=True).stdout
        shown = told.partition("Version: ")[2].partition("\n")[0]
        run = subprocess.run([python, *script], cwd=folder, capture_output=True, text=True, check=False)
    else:
        subprocess.run(["npm", "install", "--silent", *client.packages], cwd=folder, check=True)  # noqa: S607
        shown = json.loads((folder / "node_modules" / client.packages[0] / "package.json").read_text())["version"]
        local = folder / client.script  # modules are looked for beside the script
        local.write_text((SCRIPTS / client.script).read_text())
        run = subprocess.run(["node", local, *script[1:]], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S607
    said = (run.stderr or run.stdout).strip().splitlines()[-1:]
    return {"version": shown, "result": "works" if run.returncode == 0 else f"fails: {said[0] if said else ''}"}


if __name__ == "__main__":
    main()
