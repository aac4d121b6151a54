"""The tables and plots made of the experiments' committed results."""

import hashlib
import json
from dataclasses import astuple
from functools import partial
from typing import Any

from compressor.experiments import pretraining_tables as pretraining
from compressor.experiments import probe, published
from compressor.experiments.compression import Compression, compressions
from compressor.experiments.experiment import RESULTS
from compressor.figures import figure
from compressor.pages import Block, refresh, table, told
from compressor.plot import Point, draw, frontier

PLOTS = {"whole model": RESULTS / "footprint.svg", "embedding": RESULTS / "footprint-embedding.svg"}  # by panel
DECODING = RESULTS / "decoding.json"
GPT2 = RESULTS / "gpt2.json"
PROBE = RESULTS / "probe.json"
PAGE = "compressor/experiments/README.md"
TENSORGPT_RANKS = (1, 2, 3, 4)
WHOLE = ("all", "none")  # targets of experiments that are about the whole model


def frontier_experiments() -> list[Compression]:
    """Return the dense model and, largest first, the whole models that no other beats in both bytes and perplexity."""
    whole = [
        (experiment, _size_and_ratio(_fresh(experiment))) for experiment in compressions() if experiment.target in WHOLE
    ]
    best = frontier([point for _, point in whole])
    unbeaten = sorted(((e, point) for e, point in whole if point in best), key=lambda pair: -pair[1][0])
    return [*(e for e, _ in whole if e.name == "dense"), *(e for e, _ in unbeaten)]


def _size_and_ratio(result: dict[str, Any]) -> tuple[float, float]:
    return total_bytes(result, "disk"), result["quality"]["perplexity_ratio"]


def frontier_table() -> str:
    """Return the frontier with its decoding speed, in Markdown.

    Raises:
        ValueError: if a result is missing or out of date.
    """
    measured = json.loads(DECODING.read_text())
    rows = []
    for experiment in frontier_experiments():
        result = _fresh(experiment)
        resident, speed = (measured[what].get(experiment.name) for what in ("resident_bytes", "tokens_per_second"))
        disk, ratio = _size_and_ratio(result)
        rows.append(
            [
                experiment.label,
                f"{disk / 1e6:.2f}",
                "-" if resident is None else f"{resident / 1e6:.2f}",
                f"{total_bytes(result, 'dense_fp32') / disk:.1f}",
                f"{ratio:.3f}",
                "-" if speed is None else f"{speed}",
            ]
        )
    head = ["method", "disk, MB", "resident, MB", "times smaller", "perplexity / dense", "tokens/s"]
    published = next(_fresh(experiment) for experiment in compressions() if experiment.name == "tensorgpt-r4")
    size, ratio = _size_and_ratio(published)
    notes = (
        f"TensorGPT as published (R=4) reaches {ratio:.1f} times the dense perplexity at {size / 1e6:.2f} MB.\n"
        f"Tokens per second are of one text on {measured['threads']} threads of {measured['processor']}, the median of "
        f"{measured['rounds']} rounds\nin turns, load average {measured['load_average']:g}."
    )
    return f"{table(head, rows)}\n\n{notes}"


def methods_table(targets: tuple[str, ...]) -> str:
    """Return the methods that need no books, for one of `targets` each, by bytes and perplexity, in Markdown.

    Raises:
        ValueError: if a result is missing or out of date.
    """
    head = ["method", "disk, MB", "x fp32", "perplexity", "/ dense", "KL, nats", "top-1"]
    head += ["last word", "1 of 4"]
    plain = [e for e in compressions() if not (e.books or e.heal_tokens or e.untied) and e.target in targets]
    measured = [(experiment, _fresh(experiment)) for experiment in plain]
    rows = []
    for experiment, result in sorted(measured, key=lambda pair: -total_bytes(pair[1], "disk")):
        disk, dense, quality = total_bytes(result, "disk"), total_bytes(result, "dense_fp32"), result["quality"]
        rows.append(
            [
                experiment.label,
                f"{disk / 1e6:.2f}",
                f"{dense / disk:.2f}",
                figure(quality["perplexity"], 2),
                figure(quality["perplexity_ratio"], 3),
                f"{quality['kl']:.4f}",
                f"{100 * quality['top1_agreement']:.1f} %",
                f"{100 * result['tasks']['last_word']:.0f} %",
                f"{100 * result['tasks']['choice']:.0f} %",
            ]
        )
    return table(head, rows)


def books_table(target: str) -> str:
    """Return the table of experiments on books that compress the whole model ("all") or its "embedding".

    Raises:
        ValueError: if a result is missing or out of date.
    """
    head = ["model" if target == "all" else "embedding and head", "disk, MB", "x fp32", "healed, tokens"]
    head += ["/ dense, books", "KL, nats", "top-1", "/ dense, story"]
    chosen = [experiment for experiment in compressions() if experiment.books and experiment.target == target]
    measured = [(experiment, _fresh(experiment)) for experiment in chosen]
    rows = []
    for experiment, result in sorted(measured, key=lambda pair: (-_target_bytes(*pair)[0], pair[0].name)):
        (disk, dense), valid = _target_bytes(experiment, result), result.get("valid")
        rows.append(
            [
                experiment.label,
                f"{disk / 1e6:.3f}",
                f"{dense / disk:.2f}",
                f"{result['heal']['tokens']:,}" if "heal" in result else "-",
                figure(valid["perplexity_ratio"], 3) if valid else "-",
                f"{valid['kl']:.4f}" if valid else "-",
                f"{100 * valid['top1_agreement']:.1f} %" if valid else "-",
                figure(result["quality"]["perplexity_ratio"], 3),
            ]
        )
    return table(head, rows)


def tensorgpt_table() -> str:
    """Return what TensorGPT costs with the tied head and on the input side alone, as published and healed.

    Beside it stands the best budget for the embedding that takes no more bytes.

    Raises:
        ValueError: if a result is missing or out of date.
    """
    head = ["R", "table, MB", "x fp32", "tied", "tied, healed", "input only", "input only, healed"]
    head += ["best budget of no more bytes"]
    results = {experiment.name: _fresh(experiment) for experiment in compressions()}
    ours = [
        (results[experiment.name]["target_bytes"]["disk"], results[experiment.name]["quality"]["perplexity_ratio"])
        for experiment in compressions()
        if experiment.books and experiment.target == "embedding" and not experiment.heal_tokens
    ]
    rows = []
    for rank in TENSORGPT_RANKS:
        name = f"tensorgpt-r{rank}"
        found = [results.get(f"{name}{kind}") for kind in ("", "-healed", "-input", "-input-healed")]
        wte = results[name]["bytes"]["wte"]
        best, ratio = max((size, ratio) for size, ratio in ours if size <= wte["disk"])
        rows.append(
            [
                f"{rank}",
                f"{wte['disk'] / 1e6:.3f}",
                f"{wte['dense_fp32'] / wte['disk']:.2f}",
                *(figure(result["quality"]["perplexity_ratio"], 3) if result else "-" for result in found),
                f"{ratio:.3f} ({best / 1e6:.3f} MB)",
            ]
        )
    return table(head, rows)


def _target_bytes(experiment: Compression, result: dict[str, Any]) -> tuple[int, int]:
    """Return what an experiment's target occupies, and in fp32; biases and norms belong to the whole model."""
    if experiment.target == "all":
        return total_bytes(result, "disk"), total_bytes(result, "dense_fp32")
    return result["target_bytes"]["disk"], result["target_bytes"]["dense_fp32"]


BLOCKS = (
    Block("frontier", "README.md", frontier_table),
    Block("budgets", PAGE, partial(books_table, "all")),
    Block("embeddings", PAGE, partial(books_table, "embedding")),
    Block("methods", PAGE, partial(methods_table, WHOLE)),
    Block("methods-embedding", PAGE, partial(methods_table, ("embedding",))),
    Block("methods-blocks", PAGE, partial(methods_table, ("qkv", "attn", "mlp", "linears"))),
    Block("tensorgpt", PAGE, tensorgpt_table),
    Block("gpt2", PAGE, told(GPT2, published.published_table)),
    Block("probe", PAGE, told(PROBE, probe.probe_table)),
    *pretraining.BLOCKS,
)


def refresh_pages() -> None:
    """Rewrite the generated blocks of the pages that show experiments, and their plots."""
    refresh(BLOCKS)
    draw_plots()
    pretraining.draw()


def draw_plots() -> None:
    """Draw footprint against quality, one picture per panel."""
    for panel, path in PLOTS.items():
        draw([point for point in points() if point.panel == panel], path, results_sha256())


def results_sha256() -> str:
    """Return a checksum of all that the plots show."""
    return hashlib.sha256(json.dumps([astuple(point) for point in points()]).encode()).hexdigest()


def points() -> list[Point]:
    """Return every experiment as a point of the plot: the whole model, and the embedding where only that changed."""
    found = []
    for experiment in compressions():
        result, plan = _fresh(experiment), experiment.plan
        healed = ", healed" if "heal" in result else ""
        rest = f", rest {plan.rest}" if plan.rest not in (None, "fp32") else ""
        method = plan.name
        ratio = result["quality"]["perplexity_ratio"]
        if experiment.target == "embedding" and not rest:
            curve = f"{method}{' (input only)' if experiment.untied else ''}{healed}"
            found.append(Point("embedding", curve, result["bytes"]["wte"]["disk"] / 1e6, ratio))
        else:
            part = "" if experiment.target in WHOLE else f" ({experiment.target})"
            found.append(
                Point("whole model", f"{method}{part}{rest}{healed}", total_bytes(result, "disk") / 1e6, ratio)
            )
    return found


def _fresh(experiment: Compression) -> dict[str, Any]:
    result = experiment.result()
    if result is None:
        raise ValueError(f"experiment {experiment.name} has no up-to-date result; run: ttgpt compare")
    return result


def total_bytes(result: dict[str, Any], kind: str) -> int:
    """Return the bytes of all components: on disk, or dense_fp32."""
    return sum(size[kind] for size in result["bytes"].values())
