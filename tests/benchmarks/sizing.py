"""How much memory a pod needs: `python -m tests.benchmarks.sizing` measures, writes the results, refreshes their page.

Each model is served by a real process under the heaviest load that the default settings accept: every slot with a text
as long as the context, and the whole queue behind them. While all of that is running the process is told to stop, so
that the slowest drain is measured as well. With `--image` it is served in a container of that image, a second time with
the limit that the first time asks for.
"""

import argparse
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from compressor.bench.memory import peak_rss_bytes, rss_bytes
from compressor.bench.service import POLL_SECONDS, Service
from compressor.pages import Block, refresh, table
from compressor.runtime.version import versions
from service.engine.kv_budget import LONG_TEXTS, kv_budget_bytes
from service.engine.models import load
from service.settings import Settings
from tests.benchmarks import children, machine, serving
from tests.benchmarks.container import Container, contained
from tests.benchmarks.machine import cpu_seconds
from tests.benchmarks.models import make
from tests.benchmarks.plan import PROMPT

RESULTS = Path(__file__).parent / "results" / "sizing.json"
FOLDER = children.ROOT / "build" / "sizing"
DEFAULTS = Settings(models=(FOLDER,), threads=2)
QUEUED_TOKENS = 64  # of each answer in the queue
SHORT = str(FOLDER / "short.txt")  # memory depends on the forms that are chosen, not on how well
HEAL_TOKENS = "8192"  # enough for the memory of healing, which does not grow with the time it takes
LIMIT_SECONDS = 3600.0
MOST_OTHERS = 0.5  # of the processor's time; with more, times say nothing
HEADROOM = 1.25
STEP_MIB = 128
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model in one form.

    Attributes:
        model, preset: what the table calls them.
        options: of `ttgpt compress` for gpt2-mini.
        form: of the random GPT-2 124M instead.
    """

    model: str
    preset: str
    options: tuple[str, ...] = ()
    form: str | None = None

    @property
    def name(self) -> str:
        """Names the artefact's folder."""
        return self.form or f"{self.model}-{self.preset}"


MINI, LARGE = "gpt2-mini", "GPT-2 124M"
CASES = (
    Case(model=MINI, preset="dense", options=("--method", "dense")),
    Case(model=MINI, preset="int8", options=("--method", "quantize")),
    Case(model=MINI, preset="int4", options=("--method", "quantize", "--codec", "int4")),
    Case(model=MINI, preset="tensorgpt-r2", options=("--method", "tensorgpt", "--rank", "2")),
    Case(model=MINI, preset="quality", options=("--preset", "quality")),
    Case(model=MINI, preset="balanced", options=("--preset", "balanced")),
    Case(model=MINI, preset="small", options=("--preset", "small", "--heal-tokens", HEAL_TOKENS)),
    Case(model=MINI, preset="tiny", options=("--preset", "tiny", "--heal-tokens", "0", "--calibration-text", SHORT)),
    Case(model=LARGE, preset="int8", form="ttgpt-int8"),
    Case(model=LARGE, preset="int4", form="ttgpt-int4"),
)


def made(case: Case) -> tuple[Path, int | None]:
    """Return the artefact, made unless it is there, and the most memory in bytes that `ttgpt compress` took for it.

    Raises:
        RuntimeError: if it could not be made.
    """
    if case.form is not None:
        return make(FOLDER, case.form), None
    out, peak = FOLDER / case.name, FOLDER / f"{case.name}.peak"
    if not (out.is_dir() and peak.is_file()):
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "tests.benchmarks.sizing", "--make", case.name]
        made_of = children.parsed(command, children.environment(), LIMIT_SECONDS)
        if "failed" in made_of:
            raise RuntimeError(f"{case.name}: {made_of['failed']}")
        peak.write_text(str(made_of["peak_rss_bytes"]))
    return out, int(peak.read_text())


def make_one(name: str) -> None:
    """Compress one case in a child of this process; print its peak memory as JSON."""
    (case,) = (case for case in CASES if case.name == name)
    Path(SHORT).write_text(PROMPT * 32)
    command = [sys.executable, "-m", "compressor", "compress", case.model, *case.options, "--out", str(FOLDER / name)]
    subprocess.run(command, check=True, cwd=children.ROOT, stdout=subprocess.DEVNULL)
    print(json.dumps({"peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}))


@contextmanager
def placed(folder: Path, image: str | None, limit_mib: int | None = None) -> Iterator[tuple[Service | Container, str]]:
    """Serve an artefact as a process, or in a container of an image; gives it and the address."""
    unbounded = {"TTGPT_DRAIN_SECONDS": "86400", "TTGPT_REQUEST_SECONDS": "86400"}  # to be measured, not bounded
    if image is None:
        with serving.served(folder, LIMIT_SECONDS, **unbounded) as served:
            yield served
    else:
        with contained(image, folder, limit_mib, unbounded) as served_there:
            yield served_there


def _memory_bytes(service: Service | Container, resident_bytes: Callable[[int], int]) -> int:
    return service.memory_bytes() if isinstance(service, Container) else resident_bytes(service.pid)


def measured(folder: Path, image: str | None) -> dict[str, Any]:
    """Return what a service of one artefact needs; in a container, under the limit that this makes."""
    found = measure(folder, image)
    return found if image is None else measure(folder, image, request_mib(found))


def measure(folder: Path, image: str | None = None, limit_mib: int | None = None) -> dict[str, Any]:
    """Return start-up and drain in seconds, and memory in bytes, of a service of one artefact."""
    model = load(folder)
    manifest, context = model.manifest, model.context
    found: dict[str, Any] = {
        "weights_bytes": manifest.weight_bytes,
        "resident_bytes": sum(size.resident for size in manifest.bytes.values()),
        "kv_bytes": kv_budget_bytes([model], DEFAULTS),
        "cache_bytes": DEFAULTS.cache_bytes if model.decoder.matrices["wte"].is_contracted else 0,
    }
    quiet, half = machine.Quiet(), context // 2
    text = serving.text_of(model.tokenizer, half - 2)
    full = [_body(f"{i} {text}", context - half) for i in range(LONG_TEXTS)]  # of which no two begin alike
    with placed(folder, image, limit_mib) as (process, url):
        found["start_seconds"] = time.monotonic() - process.started
        found["start_cpu_seconds"] = cpu_seconds(process.pid)
        found["ready_bytes"] = _memory_bytes(process, rss_bytes)
        found["peak_bytes"] = 0
        with ThreadPoolExecutor(DEFAULTS.max_batch + DEFAULTS.max_waiting) as clients:
            answers = _fill(clients, url, full)
            process.send_signal(signal.SIGTERM)
            stopped, before = time.monotonic(), cpu_seconds(process.pid)
            while process.poll() is None:
                with suppress(OSError, RuntimeError):  # it has just ended
                    found["peak_bytes"] = max(found["peak_bytes"], _memory_bytes(process, peak_rss_bytes))
                    found["drain_cpu_seconds"] = cpu_seconds(process.pid) - before
                time.sleep(POLL_SECONDS)
            found["drain_seconds"] = time.monotonic() - stopped
        found["drained_tokens"] = sum(map(_written, answers))
    if process.returncode:
        raise RuntimeError(f"the service ended with exit code {process.returncode}")
    contained = before + found["drain_cpu_seconds"] if isinstance(process, Container) else 0.0
    return found | {"others_share": quiet.others_share(contained)}


def _written(answer: "Future[dict[str, Any]]") -> int:
    """Return the new tokens of an answer: none, if it came too late to be accepted."""
    try:
        return int(answer.result()["details"]["generated_tokens"])
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
            raise
        return 0
    except ConnectionError:  # of the proxy before a container that has stopped to listen
        return 0


def _fill(clients: ThreadPoolExecutor, url: str, full: list[str]) -> list["Future[dict[str, Any]]"]:
    """Take the KV cache with `full`, then every other slot and every place in the queue with short requests."""
    answers = [clients.submit(serving.ask, url, text, LIMIT_SECONDS) for text in full]
    _wait(url, "running", len(full))
    short = _body(PROMPT, QUEUED_TOKENS)
    others = DEFAULTS.max_batch + DEFAULTS.max_waiting - len(full)
    answers += [clients.submit(serving.ask, url, short, LIMIT_SECONDS) for _ in range(others)]
    _wait(url, "waiting", DEFAULTS.max_waiting // 2)  # some may have been answered by now
    return answers


def _wait(url: str, what: str, number: int) -> None:
    pattern = re.compile(rf"^ttgpt_num_requests_{what}{{.*}} (\S+)$", re.MULTILINE)
    deadline = time.monotonic() + LIMIT_SECONDS
    while float(pattern.findall(_metrics(url))[0]) < number:
        if time.monotonic() > deadline:
            raise RuntimeError(f"there never were {number} requests {what}")
        time.sleep(POLL_SECONDS)


def _metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:  # noqa: S310  # our own process
        text: str = answer.read().decode()
    return text


def _body(prompt: str, tokens: int) -> str:
    """Return a request for so many tokens; an answer ends earlier where the text does."""
    return json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": tokens, "details": True}})


def request_mib(row: dict[str, Any]) -> int:
    """Return the memory request, which is also the limit: the peak, a quarter of it, and a full cache of contractions.

    It is at least twice the KV cache, because the service keeps none that is larger than half of its limit.
    """
    needed = max(HEADROOM * row["peak_bytes"] + row["cache_bytes"], 2 * row["kv_bytes"]) / MIB
    return STEP_MIB * -int(-needed // STEP_MIB)


def read() -> dict[str, Any]:
    """Return the committed results."""
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    return results


def block() -> str:
    """Return the table of memory and times, in Markdown."""
    results = read()
    head = ["model", "preset", "weights, MB", "KV, MB", "ready, MB", "peak, MB", "request, MiB"]
    head += ["start, s", "drain, s", "compress, MB"]
    lines = []
    for row in results["rows"]:
        sizes = [f"{row[f'{name}_bytes'] / 1e6:.{digits}f}" for name, digits in _COLUMNS]
        alone = (row["others_share"] or 0) < MOST_OTHERS
        seconds = [f"{row[f'{name}_seconds']:.1f}" if alone else "-" for name in ("start", "drain")]
        compressing = f"{row['compress_bytes'] / 1e6:.0f}" if row["compress_bytes"] else "-"
        lines.append([row["model"], f"`{row['preset']}`", *sizes, f"**{request_mib(row)}**", *seconds, compressing])
    measured = {(row["model"], row["preset"]) for row in results["rows"]}
    missing = [f"{case.model} `{case.preset}`" for case in CASES if (case.model, case.preset) not in measured]
    contained = (
        "in a container of its image, whose limit was the request; memory is its control group's working set"
        if results["contained"]
        else "as a process; memory is its resident memory"
    )
    told = f"On {results['machine']['processor']}, {contained}.\n\n"
    return told + table(head, lines, left=2) + (f"\n\nNot measured yet: {', '.join(missing)}." if missing else "")


_COLUMNS = (("weights", 2), ("kv", 0), ("ready", 0), ("peak", 0))


BLOCKS = (Block("sizing", "k8s/README.md", block),)


def run(say: Callable[[str], None], image: str | None) -> dict[str, Any]:
    """Measure every case that an interrupted run has not come to; return the results."""
    threads = machine.pin(DEFAULTS.threads)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if not _sample(case).is_file():
            folder, peak = made(case)
            row = {"model": case.model, "preset": case.preset, "compress_bytes": peak, **measured(folder, image)}
            _sample(case).write_text(json.dumps(row))
        say(_sample(case).read_text())
    rows = [json.loads(_sample(case).read_text()) for case in CASES]
    return {"machine": machine.describe(threads), "settings": settings(), "contained": image is not None, "rows": rows}


def _sample(case: Case) -> Path:
    return FOLDER / f"{case.name}.json"


def settings() -> dict[str, Any]:
    """Return those settings that memory depends on."""
    return {name: getattr(DEFAULTS, name) for name in ("max_batch", "max_waiting", "kv_dtype", "threads")}


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sizing", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="measure again what an interrupted run has measured")
    parser.add_argument("--make", choices=[case.name for case in CASES if case.form is None], help=argparse.SUPPRESS)
    parser.add_argument("--image", help="of the service, which is then measured in containers")
    given = parser.parse_args()
    if given.make:
        make_one(given.make)
        return
    if given.fresh:
        for case in CASES:
            _sample(case).unlink(missing_ok=True)
    results = run(lambda line: print(line, flush=True), given.image)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"made_with": versions(), **results}, indent=1) + "\n")
    for case in CASES:
        _sample(case).unlink()
    refresh(BLOCKS)


if __name__ == "__main__":
    main()
