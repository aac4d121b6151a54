"""The tables and plots made of the experiments' committed results."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

from compressor.experiments.runner import RESULTS, TRAIN, VALID, Experiment, Workbench, experiments, result_of
from compressor.figures import figure
from compressor.plot import Point, draw
from compressor.pretraining import report as pretraining
from compressor.progress import Progress, silent
from compressor.recipes.executor import IN_PROCESS, Executor
from compressor.storage import durable
from compressor.storage.run_folder import require_files, require_writable

PLOT = RESULTS / "footprint.svg"
TENSORGPT_RANKS = (1, 2, 3, 4)
SERVED = "int8"  # the default model of `make serve`


def run_missing(
    *, books: Path | None = None, rerun: bool = False, executor: Executor = IN_PROCESS, progress: Progress = silent
) -> Iterator[str]:
    """Run what has no result yet, writing each as it comes; yield the names.

    Args:
        books: folder with train.txt.xz and valid.txt.xz; experiments on books are run only where it is given.
        rerun: run all, and heal all anew.
        executor: where they run; each experiment is one task.
        progress: progress callback.
    """
    chosen = [experiment for experiment in experiments() if books or not experiment.books]
    missing = [experiment for experiment in chosen if rerun or not _is_whole(experiment)]
    bench = Workbench(books, executor, progress, anew=rerun)
    if not executor.in_process:
        bench.prepare(missing)
        bench.progress = silent
    RESULTS.mkdir(exist_ok=True)
    for experiment, result in zip(missing, executor.map(bench.run, missing), strict=True):
        written = json.dumps(result, indent=2, sort_keys=True) + "\n"
        durable.write(RESULTS / f"{experiment.name}.json", written.encode())
        yield experiment.name


def check(readme: Path, books: Path | None) -> None:
    """Refuse at once what would fail when all experiments have run; raises ValueError."""
    require_files("readme", [readme])
    require_writable("readme", readme.parent)
    text = readme.read_text()
    for name in BLOCKS:
        with_block(text, name, "")
    if books is not None:
        require_files("books", [books / TRAIN, books / VALID])
    elif late := [e.name for e in experiments() if e.books and result_of(e) is None]:
        raise ValueError(f"books: experiment {late[0]} has no up-to-date result and needs them (--books DIR)")


def _is_whole(experiment: Experiment) -> bool:
    """Return whether there is an up-to-date result, judged on every text that it should be."""
    result = result_of(experiment)
    return result is not None and (not experiment.books or "valid" in result)


def methods_table() -> str:
    """Return the table of methods that need no books, by bytes and perplexity, in Markdown.

    Raises:
        ValueError: if a result is missing or out of date.
    """
    head = ["method", "MB", "in memory, MB", "x fp32", "x fp16", "perplexity", "x dense", "KL, nats", "top-1"]
    head += ["last word", "1 of 4"]
    plain = [e for e in experiments() if not (e.books or e.heal_tokens or e.untied)]
    measured = [(experiment, _fresh(experiment)) for experiment in plain]
    rows = []
    for experiment, result in sorted(measured, key=lambda pair: -total_bytes(pair[1], "disk")):
        disk, dense, quality = total_bytes(result, "disk"), total_bytes(result, "dense_fp32"), result["quality"]
        rows.append(
            [
                experiment.label,
                f"{disk / 1e6:.2f}",
                f"{total_bytes(result, 'resident') / 1e6:.2f}",
                f"{dense / disk:.2f}",
                f"{dense / disk / 2:.2f}",
                figure(quality["perplexity"], 2),
                figure(quality["perplexity_ratio"], 3),
                f"{quality['kl']:.4f}",
                f"{100 * quality['top1_agreement']:.1f} %",
                f"{100 * result['tasks']['last_word']:.0f} %",
                f"{100 * result['tasks']['choice']:.0f} %",
            ]
        )
    return _markdown(head, rows)


def books_table(target: str) -> str:
    """Return the table of experiments on books that compress the whole model ("all") or its "embedding".

    Raises:
        ValueError: if a result is missing or out of date.
    """
    head = ["model" if target == "all" else "embedding and head", "MB", "x fp32", "healed on, tokens"]
    head += ["x dense, valid.txt", "KL, nats", "top-1", "x dense, validation.txt"]
    chosen = [experiment for experiment in experiments() if experiment.books and experiment.target == target]
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
    return _markdown(head, rows)


def tensorgpt_table() -> str:
    """Return what TensorGPT costs with the tied head and on the input side alone, as published and healed.

    Beside it stands the best budget for the embedding that takes no more bytes.

    Raises:
        ValueError: if a result is missing or out of date.
    """
    head = ["R", "table, MB", "x fp32", "tied", "tied, healed", "input only", "input only, healed"]
    head += ["our table of no more bytes, tied, not healed"]
    results = {experiment.name: _fresh(experiment) for experiment in experiments()}
    ours = [
        (results[experiment.name]["target_bytes"]["disk"], results[experiment.name]["quality"]["perplexity_ratio"])
        for experiment in experiments()
        if experiment.books and experiment.target == "embedding" and not experiment.heal_tokens
    ]
    rows = []
    for rank in TENSORGPT_RANKS:
        name = f"tensorgpt-r{rank}"
        found = [results.get(f"{name}{kind}") for kind in ("", "-healed", "-input", "-input-healed")]
        table = results[name]["bytes"]["wte"]
        best, ratio = max((size, ratio) for size, ratio in ours if size <= table["disk"])
        rows.append(
            [
                f"{rank}",
                f"{table['disk'] / 1e6:.3f}",
                f"{table['dense_fp32'] / table['disk']:.2f}",
                *(figure(result["quality"]["perplexity_ratio"], 3) if result else "-" for result in found),
                f"{ratio:.3f} ({best / 1e6:.3f} MB)",
            ]
        )
    return _markdown(head, rows)


def _target_bytes(experiment: Experiment, result: dict[str, Any]) -> tuple[int, int]:
    """Return what an experiment's target occupies, and in fp32; biases and norms belong to the whole model."""
    if experiment.target == "all":
        return total_bytes(result, "disk"), total_bytes(result, "dense_fp32")
    return result["target_bytes"]["disk"], result["target_bytes"]["dense_fp32"]


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def answer() -> str:
    """Return what the README's question to the default model is answered, in Markdown."""
    result = next(_fresh(experiment) for experiment in experiments() if experiment.name == SERVED)
    return f"```json\n{json.dumps({'generated_text': result['sample']})}\n```"


BLOCKS: dict[str, Callable[[], str]] = {
    "answer": answer,
    "methods": methods_table,
    "tensorgpt": tensorgpt_table,
    "budgets": partial(books_table, "all"),
    "embeddings": partial(books_table, "embedding"),
    "pretraining": pretraining.runs_table,
    "claims": pretraining.claims_table,
    "ttm-layer": pretraining.layer_table,
}


def refreshed(readme: str) -> str:
    """Return the README with every generated block made anew.

    Raises:
        ValueError: if a block is missing.
    """
    for name, block in BLOCKS.items():
        readme = with_block(readme, name, block())
    return readme


def with_block(readme: str, name: str, text: str) -> str:
    """Return the README with `text` in the generated block called `name`.

    Raises:
        ValueError: if there is no such block.
    """
    match = re.search(rf"(?<=<!-- generated: {name} -->\n).*?(?=<!-- end -->)", readme, re.DOTALL)
    if match is None:
        raise ValueError(f"readme: has no block <!-- generated: {name} --> ... <!-- end -->")
    return f"{readme[: match.start()]}{text}\n{readme[match.end() :]}"


def refresh_readme(path: Path) -> None:
    """Rewrite the generated blocks of the README at `path`, and the plots that it shows."""
    durable.write(path, refreshed(path.read_text()).encode())
    draw(points(), PLOT, results_sha256())
    pretraining.draw()


def results_sha256() -> str:
    """Return a checksum of all that the plot shows."""
    return hashlib.sha256(json.dumps([astuple(point) for point in points()]).encode()).hexdigest()


def points() -> list[Point]:
    """Return every experiment as a point of the plot: the whole model, and the embedding where only that changed."""
    found = []
    for experiment in experiments():
        result, plan = _fresh(experiment), experiment.plan
        healed = ", healed" if "heal" in result else ""
        rest = f", rest {plan.rest}" if plan.rest not in (None, "fp32") else ""
        method = plan.name
        ratio = result["quality"]["perplexity_ratio"]
        if experiment.target == "embedding" and not rest:
            curve = f"{method}{' (input only)' if experiment.untied else ''}{healed}"
            found.append(Point("embedding", curve, result["bytes"]["wte"]["disk"] / 1e6, ratio))
        else:
            part = "" if experiment.target in ("all", "none") else f" ({experiment.target})"
            found.append(
                Point("whole model", f"{method}{part}{rest}{healed}", total_bytes(result, "disk") / 1e6, ratio)
            )
    return found


def _fresh(experiment: Experiment) -> dict[str, Any]:
    result = result_of(experiment)
    if result is None:
        raise ValueError(f"experiment {experiment.name} has no up-to-date result; run: ttgpt compare")
    return result


def total_bytes(result: dict[str, Any], kind: str) -> int:
    """Return the bytes of all components: on disk, resident, or dense_fp32."""
    return sum(size[kind] for size in result["bytes"].values())
