"""What the KV caches of all models may occupy together; too little is refused before anything is served."""

import os
from collections.abc import Mapping, Sequence

from compressor.runtime.kv import PAGE_TOKENS, pages_for
from service.engine.models import LoadedModel
from service.engine.speculation import draft_context
from service.process.cgroup import memory_limit_bytes
from service.settings import Settings

KV_SHARE = 0.5  # of the memory limit, at most, unless it is set
LONG_TEXTS = 8  # of each model that there is room for, unless it is set


def kv_budget_bytes(
    models: Sequence[LoadedModel], settings: Settings, drafts: Mapping[str, LoadedModel] | None = None
) -> int:
    """Return the setting, or what eight texts of each model take, but no more than half of the memory that there is.

    Args:
        models: that are served.
        settings: all of them.
        drafts: by the names of the models that they propose to, each with keys and values of its own for it.

    Raises:
        ValueError: if that is too little for one text, naming the numbers and what to change.
    """
    texts = {model.name: _text_bytes(model, model.context, settings) for model in models}
    for model in models:
        if drafts and model.name in drafts:
            draft = drafts[model.name]
            texts[model.name] += _text_bytes(draft, draft_context(draft, model), settings)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    half = int(KV_SHARE * min(machine, memory_limit_bytes() or machine))
    budget = settings.kv_bytes or min(half, LONG_TEXTS * sum(texts.values()))
    name, largest = max(texts.items(), key=lambda text: text[1])
    if largest <= budget:
        return budget
    halve = "set TTGPT_KV_DTYPE=fp16, " if settings.kv_dtype == "fp32" else ""
    alone = "do without TTGPT_DRAFT_MODEL, " if drafts else ""
    raise ValueError(
        f"kv_bytes: the keys and values of one text of {name} take up to {largest:,} bytes, more than the {budget:,} "
        f"that all KV caches may have; {halve}{alone}do not serve {name}, or raise TTGPT_KV_BYTES to {largest} or more"
    )


def _text_bytes(model: LoadedModel, tokens: int, settings: Settings) -> int:
    """Return the bytes of the pages of a text of so many tokens."""
    return pages_for(tokens) * PAGE_TOKENS * model.decoder.kv_bytes_per_token(settings.kv_dtype)
