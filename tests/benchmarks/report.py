"""Results as tables and a plot. Nothing here measures."""

import hashlib
import json
from pathlib import Path
from typing import Any

from compressor.pages import MISSING, Block, table, told
from compressor.plot import save
from tests.benchmarks.engines import ENGINES, OURS, peers_of

RESULTS = Path(__file__).parent / "results"
SPEED = RESULTS / "speed.json"
PLOT = RESULTS / "speed.svg"
Results = dict[str, Any]
RATIO_BATCHES = (1, 8)


def peers(results: Results) -> str:
    """Return the few figures by which engines are chosen, in Markdown."""
    head = ["engine", "weights", "B=1", "B=8", "prefill 512", "/ best peer, B=1", "B=8", "prefill 512", "RSS, MB"]
    rows = [
        [
            ENGINES[name].label,
            ENGINES[name].weights,
            *(_figure(median, "decode", batch) for batch in RATIO_BATCHES),
            _figure(median, "prefill", 512),
            *(_times(ratio(results, name, "decode", batch)) for batch in RATIO_BATCHES),
            _times(ratio(results, name, "prefill", 512)),
            f"{median['rss_bytes'] / 1e6:.0f}",
        ]
        for name, median in _measured(results).items()
    ]
    return table(head, rows, left=2)


def tables(results: Results) -> str:
    """Return all figures, in Markdown."""
    parts = [_conditions(results), _decode_table(results), _engine_table(results), _absent(results)]
    parts += [_http_table(results), _service(results)]
    return "\n\n".join(part for part in parts if part)


def busy(results: Results) -> str:
    """Return decoding speed beside a busy loop, how much of the quiet one it is, and against peers, in Markdown."""
    batches = results["plan"].get("busy_batches", ())
    head = ["engine", "weights", *(f"B={batch}" for batch in batches)]
    for title in ("of quiet", "/ best peer"):
        head += [f"{title}, B={batch}" if batch == batches[0] else f"B={batch}" for batch in batches]
    rows = [
        [
            ENGINES[name].label,
            ENGINES[name].weights,
            *(_figure(median, "decode", batch) for batch in batches),
            *(_percent(kept_share(results, name, batch)) for batch in batches),
            *(_times(ratio(results, name, "decode", batch, "busy")) for batch in batches),
        ]
        for name, median in _measured(results, "busy").items()
    ]
    return table(head, rows, left=2) if rows else MISSING


def arrival(results: Results) -> str:
    """Return the time between tokens of streams before and while a long prompt is read, in Markdown."""
    head = ["weights", "prompt read, ms", "before p50, ms", "p95", "longest", "while p50, ms", "p95", "longest"]
    rows = []
    for name, median in _measured(results, "http").items():
        if found := median.get("arrival"):
            windows = [found.get(window, {}).get(p) for window in ("before", "while") for p in ("p50", "p95", "max")]
            read = f"{found['prompt_ms']:.0f}" if "prompt_ms" in found else f"failed: {found['failed']}"
            rows.append([ENGINES[name].weights, read, *map(_milliseconds, windows)])
    return table(head, rows) if rows else MISSING


def checksum(results: Results) -> str:
    """Return a checksum of the results, which the plot carries."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


def draw(results: Results, path: Path) -> None:
    """Draw decoding speed against batch, one curve per engine, as an SVG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, median in _measured(results).items():
        points = {int(batch): speed for batch, speed in median["decode"].items()}
        style = {"linestyle": "-", "marker": "o"} if name.startswith(OURS) else {"linestyle": "--", "marker": "s"}
        axes.plot(list(points), list(points.values()), label=_label(name), **style)  # type: ignore[arg-type]
    axes.set(xscale="log", yscale="log", xlabel="rows decoded at the same time", ylabel="tokens per second, all rows")
    axes.set_title(f"GPT-2 124M, {results['machine']['cores_used']} cores of {results['machine']['processor']}")
    axes.set_xticks(results["plan"]["batches"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    save(figure, path, checksum(results))


def ratio(results: Results, name: str, kind: str, size: int, under: str = "engines") -> float | None:
    """Return how many times as fast as the best peer with as many bits an engine is, or None where not measured.

    Args:
        results: of a run.
        name: of the engine.
        kind: decode or prefill.
        size: rows, or tokens of the prompt.
        under: "engines" for quiet rounds, "busy" for the one beside a busy loop.
    """
    own, *others = (_speed_of(results, engine, kind, size, under) for engine in (name, *peers_of(name)))
    best = max((speed for speed in others if speed), default=None)
    return float(own / best) if own and best and name.startswith(OURS) else None


def kept_share(results: Results, name: str, batch: int) -> float | None:
    """Return decoding speed beside a busy loop over that of the quiet rounds, or None where not measured."""
    busy, quiet = (_speed_of(results, name, "decode", batch, under) for under in ("busy", "engines"))
    return busy / quiet if busy and quiet else None


def _speed_of(results: Results, name: str, kind: str, size: int, under: str) -> float | None:
    speed: float | None = _measured(results, under).get(name, {}).get(kind, {}).get(str(size))
    return speed


def roofline_share(results: Results, name: str, batch: int) -> float | None:
    """Return the bytes that one step reads over its time, as a share of the read bandwidth, or None if not measured.

    Read are all weights once, and the keys and values of each row at half of its generation. 1 is as fast as memory
    allows; more means that the processor's cache held part of it.
    """
    median, plan = _measured(results).get(name, {}), results["plan"]
    if str(batch) not in median.get("decode", {}) or "median" not in results["bandwidth"]:
        return None
    seen = plan["prompt_tokens"] + plan["new_tokens"] / 2
    read_bytes = median["weight_bytes"] + batch * seen * median["kv_bytes_per_token"]
    steps_per_s = median["decode"][str(batch)] / batch
    return float(read_bytes * steps_per_s / (results["bandwidth"]["median"]["gb_per_s"] * 1e9))


def http_share(results: Results, name: str, kind: str, clients: int) -> float | None:
    """Return tokens per second through HTTP ("load" or "stream") over those in process, or None where not measured."""
    median = results["http"].get(name, {}).get("median", {})
    speed = median.get(kind, {}).get(str(clients), {}).get("tokens_per_s")
    return None if speed is None else float(speed / median["in_process"][str(clients)])


def _conditions(results: Results) -> str:
    machine, plan = results["machine"], results["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    bandwidth = results["bandwidth"].get("median", {}).get("gb_per_s")
    read = "not measured" if bandwidth is None else f"{bandwidth:.1f} GB/s"
    others = 100 * results["others_share_of_processor"]
    return (
        f"{machine['cores_used']} cores of {machine['processor']} ({', '.join(machine['instructions'])}), read "
        f"bandwidth {read}. Other processes used {others:.0f} % of the processor during the run.\n"
        f"Medians of {plan['rounds']} rounds; prompts of {plan['prompt_tokens']} tokens continued by "
        f"{plan['new_tokens']}.\n{versions}."
    )


def _decode_table(results: Results) -> str:
    """Return tokens per second of all rows together, and how many times those of the best peer they are."""
    batches = results["plan"]["batches"]
    head = ["engine", "weights", *(f"B={batch}" for batch in batches)]
    head += [f"/ best peer, B={batches[0]}", *(f"B={batch}" for batch in batches[1:])]
    rows = [
        [
            ENGINES[name].label,
            ENGINES[name].weights,
            *(_figure(median, "decode", batch) for batch in batches),
            *(_times(ratio(results, name, "decode", batch)) for batch in batches),
        ]
        for name, median in _measured(results).items()
    ]
    return table(head, rows, left=2)


def _engine_table(results: Results) -> str:
    batches, prefills = results["plan"]["batches"], results["plan"]["prefills"]
    head = ["engine", "weights", f"roofline, B={batches[0]}", *(f"B={batch}" for batch in batches[1:])]
    head += [*(f"prefill {tokens}" for tokens in prefills), "RSS, MB", "first token, s"]
    rows = [
        [
            ENGINES[name].label,
            ENGINES[name].weights,
            *(_percent(roofline_share(results, name, batch)) for batch in batches),
            *(_figure(median, "prefill", tokens) for tokens in prefills),
            f"{median['rss_bytes'] / 1e6:.0f}",
            f"{median['start_seconds']:.1f}",
        ]
        for name, median in _measured(results).items()
    ]
    return table(head, rows, left=2)


def _figure(median: dict[str, Any], kind: str, size: int) -> str:
    limit = median["too_slow"].get(f"{kind} {size}")
    return f"{median[kind][str(size)]:.0f}" if limit is None else f"more than {limit:g} s"


def _absent(results: Results) -> str:
    lines = []
    for kind, where in {"engines": "", "busy": " beside a busy loop", "http": " through HTTP"}.items():
        for name, result in results.get(kind, {}).items():
            for reason in ("absent", "failed"):
                if reason in result:
                    lines.append(f"- {_label(name)}{where}: {reason}: {result[reason]}")
    return "\n".join(lines)


def _http_table(results: Results) -> str:
    head = ["weights", "clients", "in process", "whole", "share", "streamed", "share"]
    head += ["first token p50, ms", "p95", "next p50, ms", "p95"]
    rows = []
    for name, result in results["http"].items():
        for clients, own in result.get("median", {}).get("in_process", {}).items():
            stream = result["median"]["stream"][clients]
            row = [ENGINES[name].weights, clients, f"{own:.0f}"]
            for kind in ("load", "stream"):
                row += [
                    _speed(result["median"][kind][clients]),
                    _percent(http_share(results, name, kind, int(clients))),
                ]
            for latency in ("first_token_ms", "inter_token_ms"):
                row += [_milliseconds(stream.get(latency, {}).get(p)) for p in ("p50", "p95")]
            rows.append(row)
    return table(head, rows) if rows else ""


def _service(results: Results) -> str:
    lines = []
    for name, result in results["http"].items():
        if "median" in result:
            median = result["median"]
            lines.append(
                f"- the service with {ENGINES[name].weights}: {median['start_seconds']:.1f} s from the process's start "
                f"to its first token, {median['rss_bytes'] / 1e6:.0f} MB after one client, "
                f"{median['peak_rss_bytes'] / 1e6:.0f} MB at most"
            )
    return "\n".join(lines)


def _measured(results: Results, under: str = "engines") -> dict[str, Any]:
    return {name: result["median"] for name, result in results.get(under, {}).items() if "median" in result}


def _label(name: str) -> str:
    return f"{ENGINES[name].label} {ENGINES[name].weights}"


def _speed(result: dict[str, Any]) -> str:
    if "tokens_per_s" in result:
        return f"{result['tokens_per_s']:.0f}"
    return str(result.get("absent") or result.get("failed"))


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _page(results: Results) -> str:
    return f"{tables(results)}\n\n![Decoding speed](results/{PLOT.name})"


PAGE = "tests/benchmarks/README.md"
BLOCKS = (
    Block("peers", "README.md", told(SPEED, peers)),
    Block("speed", PAGE, told(SPEED, _page)),
    Block("busy", PAGE, told(SPEED, busy)),
    Block("arrival", PAGE, told(SPEED, arrival)),
)
