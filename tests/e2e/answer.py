"""The question of the first page, and what the default model of `make serve` answers.

`python -m tests.e2e.answer DIR` asks the artefact in DIR and refreshes the page.
"""

import argparse
import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from compressor.pages import ROOT, Block, refresh
from tests.benchmarks.serving import served

QUALITY = ROOT / "compressor/experiments/results/compression/int8.json"
ANSWER = Path(__file__).parent / "results" / "answer.json"
# Sampled, because the model repeats itself where it takes the likeliest token.
QUESTION: dict[str, Any] = {
    "inputs": "The old man looked at the sea",
    "parameters": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 2, "max_new_tokens": 45},
}


def ask(url: str) -> dict[str, Any]:
    """Return the answer of the service at `url`."""
    headers = {"content-type": "application/json"}
    request = Request(f"{url}/generate", json.dumps(QUESTION).encode(), headers)  # noqa: S310  # our own process
    with urlopen(request, timeout=60) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
    return answer


def read() -> dict[str, Any]:
    """Return the committed answer."""
    answer: dict[str, Any] = json.loads(ANSWER.read_text())
    return answer


def block() -> str:
    """Return question and answer, in Markdown; the answer as a text behind its prompt."""
    story = f"*{QUESTION['inputs']}*{read()['generated_text']}".replace("\n", "\n> ").replace("> \n", ">\n")
    inputs, parameters = (json.dumps(QUESTION[key], separators=(",", ":")) for key in ("inputs", "parameters"))
    return (
        "```sh\ncurl -s localhost:8000/generate -H 'content-type: application/json' -d '\n"
        f'{{"inputs":{inputs},\n "parameters":{parameters}}}\'\n```\n\n'
        f'The answer is `{{"generated_text": ...}}`, which continues the prompt:\n\n> {story}\n\n{quality()}'
    )


def quality() -> str:
    """Return how good the model is that answers."""
    measured = json.loads(QUALITY.read_text())["quality"]
    ours, dense, same = (measured[name] for name in ("perplexity", "dense_perplexity", "top1_agreement"))
    return (
        "gpt2-mini is a small model: its sentences are sound, its stories lead nowhere. int8, which answers, is as\n"
        f"good as the dense model: perplexity {ours:.2f} against {dense:.2f}, and the same token is the likeliest\n"
        f"in {same:.1%} of all places."
    )


BLOCKS = (Block("answer", "README.md", block),)


def main() -> None:
    """Ask and publish."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.answer", description=__doc__)
    parser.add_argument("artifact", type=Path, metavar="DIR")
    with served(parser.parse_args().artifact, 60) as (_, url):
        ANSWER.write_text(json.dumps(ask(url), indent=2) + "\n")
    refresh(BLOCKS)


if __name__ == "__main__":
    main()
