"""What pages in common bring: `python -m tests.benchmarks.prompts DIR` measures and publishes.

Two services of the same artefact take turns, one of which reads every prompt anew.
"""

import argparse
import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compressor.bench.endpoint import Endpoint
from compressor.bench.medians import Sample, medians
from compressor.bench.streams import arrivals, gaps, measure, percentiles
from compressor.figures import figure
from compressor.pages import Block, refresh, table, told
from compressor.runtime.version import versions
from tests.benchmarks import machine, serving

RESULTS = Path(__file__).parent / "results" / "prompts.json"
THREADS = 2
ROUNDS = 5
SYSTEM_TOKENS, CLIENTS, NEW_TOKENS = 450, 64, 48
BATCHES = (1, 8, 32, 64)
STREAMS, LONG_ANSWER = 8, 400
ARRIVING, ARRIVING_TOKENS = 6, 490  # one after the other
SECONDS = 60.0

Texts = Callable[[int], str]


def body(text: str, new_tokens: int) -> bytes:
    """Return a request for exactly so many tokens."""
    return serving.body(new_tokens, text, ignore_eos=True).encode()


async def first_token_ms(endpoint: Endpoint, text: str) -> float:
    """Return how long the first token of an answer takes."""
    sent, came = await arrivals(endpoint, body(text, 1))
    return 1e3 * (came - sent)


async def beside_prompts(endpoint: Endpoint, texts: list[str]) -> dict[str, float]:
    """Return the 95th percentile of the time between tokens of STREAMS streams, before and while prompts are read."""
    running = [asyncio.create_task(arrivals(endpoint, body(f"{i}", LONG_ANSWER))) for i in range(STREAMS)]
    await asyncio.sleep(0.5)
    read = [await arrivals(endpoint, body(text, 1)) for text in texts]
    streams = await asyncio.gather(*running)
    begun, sent, answered = max(stream[1] for stream in streams), read[0][0], read[-1][-1]
    before, beside = gaps(streams, begun, sent), gaps(streams, sent, answered)
    return {"alone_ms": percentiles(before)["p95"], "beside_ms": percentiles(beside)["p95"]}


def turn(endpoint: Endpoint, text_of: Texts, number: int) -> Sample:
    """Return one sample of a service; no text of another turn begins like one of this."""
    system = f"{number} {text_of(SYSTEM_TOKENS)}"
    asyncio.run(arrivals(endpoint, body(system, 1)))
    shared = [[body(f"{system} {client}", NEW_TOKENS)] for client in range(CLIENTS)]
    sample: Sample = {"shared": asyncio.run(measure(endpoint, shared, NEW_TOKENS))["tokens_per_s"]}
    for clients in BATCHES:
        own = [[body(f"{number} {client}", NEW_TOKENS)] * 2 for client in range(clients)]
        sample[f"batch_{clients}"] = asyncio.run(measure(endpoint, own, NEW_TOKENS))["tokens_per_s"]
    again = f"again {number} {text_of(SYSTEM_TOKENS)}"
    sample["first_ms"] = asyncio.run(first_token_ms(endpoint, again))
    sample["again_ms"] = asyncio.run(first_token_ms(endpoint, again))
    texts = [f"{number} {i} {text_of(ARRIVING_TOKENS)}" for i in range(ARRIVING)]
    return sample | asyncio.run(beside_prompts(endpoint, texts))


def run(artifact: Path) -> dict[str, Any]:
    """Return medians of ROUNDS turns of both services."""
    threads = machine.pin(THREADS)
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))

    def text_of(tokens: int) -> str:
        return serving.text_of(tokenizer, tokens)

    settings = {"TTGPT_MAX_BATCH": str(CLIENTS)}
    samples: dict[str, list[Sample]] = {"kept": [], "anew": []}
    with (
        serving.served(artifact, SECONDS, **settings) as (_, kept),
        serving.served(artifact, SECONDS, **settings, TTGPT_PREFIX_CACHE="false") as (_, anew),
    ):
        for number in range(ROUNDS):
            for name, url in {"kept": kept, "anew": anew}.items():
                samples[name].append(turn(Endpoint(url), text_of, number))
                print(name, json.dumps(samples[name][-1]), flush=True)
    found = {name: medians(each) for name, each in samples.items()}
    return {"machine": machine.describe(threads), "model": artifact.name, **found}


def block(results: dict[str, Any]) -> str:
    """Return what was measured, in Markdown."""
    kept, anew = results["kept"], results["anew"]
    own = [
        (f"tokens/s of {clients} clients with short prompts of their own", f"batch_{clients}") for clients in BATCHES
    ]
    rows = [
        (f"tokens/s of {CLIENTS} clients whose prompts begin with the same {SYSTEM_TOKENS} tokens", "shared"),
        *own,
        (f"first token behind {SYSTEM_TOKENS} tokens, ms", "first_ms"),
        ("the same prompt again, ms", "again_ms"),
        (f"95th percentile between tokens of {STREAMS} streams, ms", "alone_ms"),
        (f"the same while prompts of {ARRIVING_TOKENS} tokens are read, ms", "beside_ms"),
    ]
    lines = [[told, figure(kept[what], 0), figure(anew[what], 0)] for told, what in rows]
    return (
        table([results["model"], "with", "`TTGPT_PREFIX_CACHE=false`"], lines)
        + f"\n\nMedians of {ROUNDS} turns on {results['machine']['cores_used']} cores of "
        f"{results['machine']['processor']}, which the clients share (`make bench-prompts`)."
    )


BLOCKS = (Block("prompts", "service/README.md", told(RESULTS, block)),)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prompts", description=__doc__)
    parser.add_argument("artifact", type=Path, metavar="DIR")
    results = run(parser.parse_args().artifact)
    results = {"made_with": versions(), "load_average": round(os.getloadavg()[0], 1), **results}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    refresh(BLOCKS)


if __name__ == "__main__":
    main()
