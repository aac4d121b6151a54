"""What the KV caches may occupy; more is refused before anything is served."""

import os
from collections.abc import Mapping, Sequence

from service.engine.batch import draft_row_bytes, kv_row_bytes
from service.engine.models import LoadedModel
from service.process.cgroup import memory_limit_bytes
from service.settings import Settings

KV_SHARE = 0.5  # of the memory limit


def check_kv_budget(
    models: Sequence[LoadedModel], settings: Settings, drafts: Mapping[str, LoadedModel] | None = None
) -> None:
    """Refuse KV caches that would not fit when every slot is full.

    Args:
        models: that are served.
        settings: all of them.
        drafts: by the names of the models that they propose to, each with a cache of its own for it.

    Raises:
        ValueError: naming the numbers, and what to change.
    """
    rows = {model.name: kv_row_bytes(model, settings) for model in models}
    for model in models:
        if drafts and model.name in drafts:
            rows[f"draft of {model.name}"] = draft_row_bytes(drafts[model.name], model, settings)
    row = sum(rows.values())
    budget = kv_budget_bytes(settings)
    if row * settings.max_batch <= budget:
        return
    each = ", ".join(f"{name} {size:,}" for name, size in rows.items())
    fitting = budget // row
    lower = f"lower TTGPT_MAX_BATCH to {fitting} or less" if fitting else "serve fewer models"
    halve = ", set TTGPT_KV_DTYPE=fp16" if settings.kv_dtype == "fp32" else ""
    alone = ", do without TTGPT_DRAFT_MODEL" if drafts else ""
    raise ValueError(
        f"max_batch: KV caches of {settings.max_batch} slots (bytes per slot: {each}) take "
        f"{row * settings.max_batch:,} bytes, more than the budget of {budget:,}; "
        f"{lower}{halve}{alone} or raise TTGPT_KV_BYTES"
    )


def kv_budget_bytes(settings: Settings) -> int:
    """Return the setting, or half of what the control group or the machine has."""
    if settings.kv_bytes is not None:
        return settings.kv_bytes
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(KV_SHARE * min(machine, memory_limit_bytes() or machine))
