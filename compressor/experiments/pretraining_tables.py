"""What the experiment found, as tables and a plot for its page."""

import hashlib
import json
from math import exp
from statistics import mean
from typing import Any

from compressor.experiments.experiment import RESULTS
from compressor.experiments.pretraining import pretrainings
from compressor.pages import MISSING, Block, table
from compressor.plot import save

PLOT = RESULTS / "learning-curves.svg"
PAGE = "compressor/pretraining/README.md"
EXPERIMENTS = {experiment.name: experiment for experiment in pretrainings()}
COMPARABLE = 18.08 / 17.55  # TTM-64 against dense, WikiText-103 (arXiv 2306.02697): what its authors call so
WAYS = {
    "ours": "the custom backward pass",
    "chain": "autograd, core by core",
    "contraction": "autograd, optimal contraction",
}


def runs_table() -> str:
    """Return all variants that have a result, in Markdown."""
    head = ["model", "seeds", "all, M", "attn, M", "MLP, M", "MB", "perplexity", "/ dense"]
    head += ["train, tok/s", "decode, tok/s", "peak, MB"]
    costs, rows = _costs(), []
    for name, experiment in EXPERIMENTS.items():
        result = _result(name)
        if not result["runs"]:
            continue
        counts, cost, ratio = result["parameters"], costs.get(name), _ratio(name)
        rows.append(
            [
                experiment.label,
                str(len(result["runs"])),
                *(f"{counts[part] / 1e6:.2f}" for part in ("all", "attention", "mlp")),
                f"{result['bytes'] / 1e6:.2f}",
                _spread_text(_perplexities(name)),
                "-" if ratio is None else f"{ratio:.3f}",
                *(
                    f"{cost[key]:,}" if cost else "-"
                    for key in ("train_tokens_per_second", "decode_tokens_per_second", "peak_mb")
                ),
            ]
        )
    return table(head, rows) if rows else MISSING


def claims_table() -> str:
    """Return the papers' claims beside what was found, with a verdict that the seeds' spread decides."""
    rows = []
    for name in ("ttm-r16", "ttm-r32", "ttm-r48"):
        if (ratio := _ratio(name)) is not None:
            claim = "TTM: up to 40 % fewer parameters, comparable perplexity"
            fewer = _result(name)["parameters"]["all"] / _result("dense")["parameters"]["all"]
            verdict = f"{'held' if ratio <= COMPARABLE else 'did not hold'} ({_percent(COMPARABLE)} there)"
            rows.append([claim, f"rank {name[-2:]}: {_percent(fewer)} and {_percent(ratio)}", verdict])
    for name in ("lpa-r64", "lpa-r96", "lpa-r64-gpt2"):
        if (ratio := _ratio(name)) is not None:
            which = EXPERIMENTS[name].label.removeprefix("LPA, ")
            rows.append(
                ["LPA: about 5 % better perplexity", f"{which}: {_percent(ratio)}", _sided(1 - ratio, "held in sign")]
            )
            if (speed := _speed(name)) is not None:
                verdict = "held in sign" if speed < 1 else "did not hold"
                rows.append(["LPA: 12.4 % less training time", f"{which}: {_percent(speed)}", verdict])
    for name, where in (("low-rank-mlp", "in the MLP only"), ("low-rank-all", "everywhere")):
        if (ratio := _ratio(name)) is not None:
            rows.append([f"LPA: low rank {where} hurts perplexity", _percent(ratio), _sided(ratio - 1, "held")])
    return table(["the papers claim", "here, against dense", "verdict"], rows) if rows else MISSING


def layer_table() -> str:
    """Return what the tensor-train layer keeps and takes, in Markdown."""
    path = RESULTS / "ttm-layer.json"
    if not path.is_file():
        return MISSING
    head = ["rank", "gradients by", "kept, MB", "of it x and cores, MB", "forward, ms", "backward, ms"]
    rows = [
        [
            str(row["rank"]),
            WAYS[row["way"]],
            f"{row['kept']['all'] / 1e6:,.1f}",
            f"{(row['kept']['x'] + row['kept']['cores']) / 1e6:,.1f}",
            f"{row['forward_ms']:,.0f}",
            f"{row['backward_ms']:,.0f}",
        ]
        for row in json.loads(path.read_text())["rows"]
    ]
    return table(head, rows)


def results_sha256() -> str:
    """Return a checksum of all that the plot shows."""
    return hashlib.sha256(json.dumps(_curves()).encode()).hexdigest()


def draw() -> None:
    """Draw the learning curves; the same results always give the same bytes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in _curves().items():
        tokens, losses = zip(*curve[1:], strict=True)
        style = "--" if name.startswith("low-rank") else ":" if name.startswith("ttm") else "-"
        axes.plot(
            [t / 1e6 for t in tokens], [exp(loss) for loss in losses], linestyle=style, label=EXPERIMENTS[name].label
        )
    axes.set(xlabel="tokens trained on, millions", ylabel="perplexity on held-out books", yscale="log")
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(which="both", alpha=0.3)
    if _curves():
        axes.legend(fontsize="small")
    save(figure, PLOT, results_sha256())


def _curves() -> dict[str, list[tuple[int, float]]]:
    """Return the validation curve of every variant, the mean over its seeds: (tokens, nats per token)."""
    curves = {}
    for name in EXPERIMENTS:
        runs = list(_result(name)["runs"].values())
        points = zip(*(run["curve"] for run in runs), strict=True)
        curves[name] = [(group[0][0], round(mean(loss for _, loss in group), 5)) for group in points]
    return {name: curve for name, curve in curves.items() if curve}


def _result(name: str) -> dict[str, Any]:
    return EXPERIMENTS[name].result() or {"runs": {}}


def _perplexities(name: str) -> list[float]:
    return [run["perplexity"] for run in _result(name)["runs"].values()]


def _ratio(name: str) -> float | None:
    """Return the perplexity against dense, a mean over the seeds that both have, or None where there are none."""
    ours, dense = (_result(which)["runs"] for which in (name, "dense"))
    shared = ours.keys() & dense.keys()
    return mean(ours[seed]["perplexity"] / dense[seed]["perplexity"] for seed in shared) if shared else None


def _noise() -> float | None:
    """Return the largest relative spread between seeds of one variant, or None with one seed each."""
    found = [_perplexities(name) for name in EXPERIMENTS]
    spreads = [max(values) / min(values) - 1 for values in found if len(values) > 1]
    return max(spreads, default=None)


def _sided(gain: float, yes: str) -> str:
    noise, found = _noise(), yes if gain > 0 else "did not hold"
    if noise is None:
        return f"{found}, by one seed"
    return "undecided: within the spread of seeds" if abs(gain) <= noise else found


def _speed(name: str) -> float | None:
    """Return the training time per token against dense."""
    costs = _costs()
    key = "train_tokens_per_second"
    return costs["dense"][key] / costs[name][key] if name in costs else None


def _costs() -> dict[str, dict[str, Any]]:
    path = RESULTS / "pretraining-cost.json"
    return json.loads(path.read_text())["variants"] if path.is_file() else {}


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _spread_text(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else "")


BLOCKS = (
    Block("pretraining", PAGE, runs_table),
    Block("claims", PAGE, claims_table),
    Block("ttm-layer", PAGE, layer_table),
)
