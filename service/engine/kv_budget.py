"""What the KV caches may occupy; more is refused before anything is served."""

import os
from collections.abc import Sequence

from service.engine.batch import kv_row_bytes
from service.engine.models import LoadedModel
from service.process.cgroup import memory_limit_bytes
from service.settings import Settings

KV_SHARE = 0.5  # of the memory limit


def check_kv_budget(models: Sequence[LoadedModel], settings: Settings) -> None:
    """Refuse KV caches that would not fit when every slot is full.

    Raises:
        ValueError: naming the numbers, and what to change.
    """
    row = sum(kv_row_bytes(model, settings) for model in models)
    budget = kv_budget_bytes(settings)
    if row * settings.max_batch <= budget:
        return
    each = ", ".join(f"{model.name} {kv_row_bytes(model, settings):,}" for model in models)
    fitting = budget // row
    lower = f"lower TTGPT_MAX_BATCH to {fitting} or less" if fitting else "serve fewer models"
    halve = ", set TTGPT_KV_DTYPE=fp16" if settings.kv_dtype == "fp32" else ""
    raise ValueError(
        f"max_batch: KV caches of {settings.max_batch} slots (bytes per slot: {each}) take "
        f"{row * settings.max_batch:,} bytes, more than the budget of {budget:,}; "
        f"{lower}{halve} or raise TTGPT_KV_BYTES"
    )


def kv_budget_bytes(settings: Settings) -> int:
    """Return the setting, or half of what the control group or the machine has."""
    if settings.kv_bytes is not None:
        return settings.kv_bytes
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(KV_SHARE * min(machine, memory_limit_bytes() or machine))
