"""Experiments, their committed results, and the tables and plots made of them.

An experiment is a small JSON file of differences from a dense, unquantised run; its result is a JSON
file of the same name in results/, which is rerun only when it is missing or out of date.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from compressor import huggingface
from compressor.artifact import measure_bytes
from compressor.calibrate import sample_text
from compressor.compress import VALIDATION_TEXT, Recipe, make, measure
from compressor.evaluate import GOLDEN_PROMPT
from compressor.generate import generate
from compressor.gpt2 import GPT2
from compressor.methods import METHODS
from compressor.progress import Progress, silent
from compressor.tasks import accuracy

EXPERIMENTS = Path(__file__).parent / "experiments"
RESULTS = EXPERIMENTS / "results"
PLOT = RESULTS / "footprint.svg"
SERVED = "int8"  # the default model of `make serve`
SAMPLE_TOKENS = 40


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row of a table.

    Attributes:
        name: of its file.
        label: what the table calls it.
        recipe: how the embedded model is compressed.
    """

    name: str
    label: str
    recipe: Recipe

    def inputs(self) -> dict[str, Any]:
        """Return all that the result depends on; a result with other inputs is out of date."""
        weights = huggingface.EMBEDDED_FOLDER / "model.safetensors"
        return {
            "method": self.recipe.method,
            "config": self.recipe.settings(),
            "model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "text_sha256": hashlib.sha256(VALIDATION_TEXT.read_bytes()).hexdigest(),
        }


def experiments() -> list[Experiment]:
    """Return all experiments, by file name."""
    found = []
    for path in sorted(EXPERIMENTS.glob("*.json")):
        raw = json.loads(path.read_text())
        recipe = Recipe(
            method=raw.get("method", "dense"),
            options=raw.get("options", {}),
            rest=raw.get("rest"),
            target=raw.get("target"),
        )
        found.append(Experiment(name=path.stem, label=raw["label"], recipe=recipe))
    return found


def result_of(experiment: Experiment) -> dict[str, Any] | None:
    """Return the committed result, or None where it is missing or out of date."""
    path = RESULTS / f"{experiment.name}.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result if result["inputs"] == experiment.inputs() else None


def run_missing(*, rerun: bool = False, progress: Progress = silent) -> Iterator[str]:
    """Run what has no result yet, writing each as it comes; yield the names."""
    checkpoint = huggingface.load(huggingface.EMBEDDED)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    calibration: Tensor | None = None  # the same text for all
    RESULTS.mkdir(exist_ok=True)
    for experiment in experiments():
        if result_of(experiment) is not None and not rerun:
            continue
        if calibration is None and METHODS[experiment.recipe.method].calibrated:
            calibration = sample_text(checkpoint.model.prepared(), progress=progress)
        made = make(checkpoint, experiment.recipe, progress, calibration=calibration)
        sizes = measure_bytes(made.model, made.vector_codec)
        result = {
            "inputs": experiment.inputs(),
            "bytes": {component: size.model_dump() for component, size in sizes.items()},
            "quality": measure(made.model, checkpoint, VALIDATION_TEXT, progress).model_dump(),
            "tasks": asdict(accuracy(made.model.prepared(), VALIDATION_TEXT.read_text(), tokenizer, progress)),
            "sample": sample(made.model.prepared(), tokenizer),
        }
        (RESULTS / f"{experiment.name}.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
        yield experiment.name


def sample(model: GPT2, tokenizer: Tokenizer) -> str:
    """Return what a prepared model continues the prompt with, greedily."""
    prompt = tokenizer.encode(GOLDEN_PROMPT, add_special_tokens=False).ids
    ids = generate(model, torch.tensor([prompt]), SAMPLE_TOKENS, temperature=0)[0]
    return tokenizer.decode(ids[len(prompt) :].tolist())


def methods_table() -> str:
    """Return the table of methods by bytes and perplexity, in Markdown.

    Raises:
        ValueError: if a result is missing or out of date.
    """
    head = ["method", "MB", "in memory, MB", "x fp32", "x fp16", "perplexity", "x dense", "KL, nats", "top-1"]
    head += ["last word", "1 of 4"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    measured = [(experiment, _fresh(experiment)) for experiment in experiments()]
    for experiment, result in sorted(measured, key=lambda pair: -_total(pair[1], "disk")):
        disk, dense, quality = _total(result, "disk"), _total(result, "dense_fp32"), result["quality"]
        rows.append(
            [
                experiment.label,
                f"{disk / 1e6:.2f}",
                f"{_total(result, 'resident') / 1e6:.2f}",
                f"{dense / disk:.2f}",
                f"{dense / disk / 2:.2f}",
                f"{quality['perplexity']:.2f}",
                f"{quality['perplexity_ratio']:.3f}",
                f"{quality['kl']:.4f}",
                f"{100 * quality['top1_agreement']:.1f} %",
                f"{100 * result['tasks']['last_word']:.0f} %",
                f"{100 * result['tasks']['choice']:.0f} %",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def answer() -> str:
    """Return what the README's question to the default model is answered, in Markdown."""
    result = next(_fresh(experiment) for experiment in experiments() if experiment.name == SERVED)
    return f"```json\n{json.dumps({'generated_text': result['sample']})}\n```"


BLOCKS = {"answer": answer, "methods": methods_table}


def refreshed(readme: str) -> str:
    """Return the README with every generated block made anew.

    Raises:
        ValueError: if a block is missing.
    """
    for name, block in BLOCKS.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        match = pattern.search(readme)
        if match is None:
            raise ValueError(f"readme: has no block <!-- generated: {name} --> ... <!-- end -->")
        readme = f"{readme[: match.start()]}{match[1]}{block()}\n{match[2]}{readme[match.end() :]}"
    return readme


def refresh_readme(path: Path) -> None:
    """Rewrite the generated blocks of the README at `path`, and the plot that it shows."""
    path.write_text(refreshed(path.read_text()))
    draw(PLOT)


def draw(path: Path) -> None:
    """Draw footprint against quality, one curve per method, with the frontier, as an SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    points = _points()
    for method in dict.fromkeys(method for method, _, _ in points):
        curve = sorted((mb, ratio) for name, mb, ratio in points if name == method)
        axes.plot(*zip(*curve, strict=True), marker="o", label=method)
    best = sorted((mb, ratio) for _, mb, ratio in points)
    frontier = [p for i, p in enumerate(best) if all(p[1] < other[1] for other in best[:i])]
    axes.plot(*zip(*frontier, strict=True), color="black", linestyle=":", label="frontier", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="weights, MB", ylabel="perplexity, times dense")
    axes.set_title("gpt2-mini on validation.txt, not healed")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    with mpl.rc_context({"svg.hashsalt": "ttgpt", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Description": results_sha256()})


def results_sha256() -> str:
    """Return a checksum of all that the plot shows."""
    return hashlib.sha256(json.dumps(_points()).encode()).hexdigest()


def _points() -> list[tuple[str, float, float]]:
    """Return (curve, MB, perplexity ratio) of every experiment."""
    measured = [(_curve(experiment.recipe), _fresh(experiment)) for experiment in experiments()]
    return [(name, _total(r, "disk") / 1e6, r["quality"]["perplexity_ratio"]) for name, r in measured]


def _curve(recipe: Recipe) -> str:
    return recipe.method if recipe.rest in (None, "fp32") else f"{recipe.method}, rest {recipe.rest}"


def _fresh(experiment: Experiment) -> dict[str, Any]:
    result = result_of(experiment)
    if result is None:
        raise ValueError(f"experiment {experiment.name} has no up-to-date result; run: ttgpt compare")
    return result


def _total(result: dict[str, Any], kind: str) -> int:
    return sum(size[kind] for size in result["bytes"].values())
