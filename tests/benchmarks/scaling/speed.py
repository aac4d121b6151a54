"""How fast a replica is, from the committed results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.settings import Settings
from tests.benchmarks import sizing
from tests.benchmarks.report import SPEED

ENGINE, MODEL, PRESET, PREFILL = "ttgpt-int8", "GPT-2 124M", "int8", "128"
DEFAULTS = Settings(models=(Path(),), threads=2)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One replica.

    Attributes:
        step_seconds: of one token of every running request, by how many run; [0] is of none.
        read_seconds: of a prompt, which all running requests wait for.
        slots: requests that run at the same time.
        max_waiting: requests that wait for a slot; more are refused.
        start_seconds: from the process's start until it is ready.
        busy_share: of its cores' time that it uses while it has requests.
    """

    step_seconds: tuple[float, ...]
    read_seconds: float
    slots: int
    max_waiting: int
    start_seconds: float = 0.0
    busy_share: float = 1.0

    def capacity(self, tokens: float) -> float:
        """Return the requests per second, of so many new tokens, that all slots together answer."""
        return self.slots / (self.slots * self.read_seconds + tokens * self.step_seconds[self.slots])


def measured(prompt_tokens: int, new_tokens: int) -> Speed:
    """Return what was measured of GPT-2 124M in int8 on two cores: streams over HTTP, prompts in process.

    There are as many slots as the settings say, or fewer where the KV cache is full before.
    """
    results = json.loads(SPEED.read_text())
    (row,) = (row for row in sizing.read()["rows"] if (row["model"], row["preset"]) == (MODEL, PRESET))
    engine, http = (results[under][ENGINE]["median"] for under in ("engines", "http"))
    texts = int(row["kv_bytes"] / engine["kv_bytes_per_token"] / (prompt_tokens + new_tokens))
    slots = min(DEFAULTS.max_batch, texts)
    return Speed(
        step_seconds=steps(http["stream"], slots),
        read_seconds=prompt_tokens / engine["prefill"][PREFILL],
        slots=slots,
        max_waiting=DEFAULTS.max_waiting,
        start_seconds=row["start_seconds"],
        busy_share=row["drain_cpu_seconds"] / row["drain_seconds"] / DEFAULTS.threads,
    )


def steps(streams: dict[str, Any], slots: int) -> tuple[float, ...]:
    """Return the seconds of a step by running requests: those measured, on straight lines between and behind them."""
    counts = np.array([float(count) for count in streams])
    seconds = counts / np.array([figures["tokens_per_s"] for figures in streams.values()])
    slope = (seconds[-1] - seconds[-2]) / (counts[-1] - counts[-2])
    running = np.arange(slots + 1)
    behind = seconds[-1] + slope * np.maximum(running - counts[-1], 0)
    return tuple(np.where(running > counts[-1], behind, np.interp(running, counts, seconds)).tolist())
