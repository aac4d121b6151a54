"""Answers that need not be computed again: those of greedy and of seeded requests, which nothing else changes.

They share the tiers of the contraction cache. A key is the artefact's digest and a hash of all that decides the
answer; the prompt itself stands nowhere, but the answer does.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple
from hashlib import sha256
from math import isnan, nan
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from service.cache.contractions import SCHEMA, ContractionCache
from service.cache.value import Layout
from service.engine.generation import End, FinishReason, Generation, Token
from service.engine.jobs import Request
from service.engine.prompt_scores import Scores
from service.metrics import Metrics
from service.settings import Settings

ANSWER = Layout("json")
Told = tuple[int, str, float | None, bool, tuple[tuple[int, float], ...]]
Scored = tuple[list[float], list[list[int]], list[list[float]]]
REMEMBERED = TypeAdapter(tuple[FinishReason | None, tuple[Told, ...], Scored | None])
Answer = tuple[list[Token], Scores | None]


class AnswerCache:
    """Answers of all models."""

    def __init__(self, cache: ContractionCache, metrics: Metrics, settings: Settings) -> None:
        """Keep answers where `cache` keeps its values."""
        self._local, self._redis = cache.local, cache.redis
        self._results, self._operation = metrics.answer_cache_requests, metrics.core_cache_operation
        self._decides = [settings.kv_dtype, settings.prefill_chunk]

    async def answer(self, requests: Sequence[Request[Any]]) -> list[Request[Any]]:
        """Answer those that are remembered, and have the others remembered; return the others."""
        keys = {self._key(r): r for r in requests if isinstance(r, Generation) and r.prompt.sampling.repeatable}
        found = await self._found(list(keys))
        for key, request in keys.items():
            if key in found:
                request.replay(*found[key])
            else:
                request.on_end = self._remember_as(key)
        answered = {id(keys[key]) for key in found}
        return [request for request in requests if id(request) not in answered]

    async def _found(self, keys: Sequence[str]) -> dict[str, Answer]:
        with self._operation.labels("local", "get_answer").time():
            found = _readable(zip(keys, self._local.get_many(keys), strict=True))
        missing = [key for key in keys if key not in found]
        self._results.labels("local", "hit").inc(len(found))
        self._results.labels("local", "miss").inc(len(missing))
        if missing and self._redis is not None:
            shared = await self._redis.get_many(missing, ANSWER, self._results, "get_answer") or []
            payloads = dict(zip(missing, shared, strict=False))
            came = _readable(payloads.items())
            self._local.put_many((key, payload) for key in came if (payload := payloads[key]) is not None)
            found |= came
        return found

    def _remember_as(self, key: str) -> Any:
        def remember(tokens: Sequence[Token], scores: Scores | None) -> None:
            payload = _payload(tokens, scores)
            self._local.put_many([(key, payload)])
            if self._redis is not None:
                self._redis.offer([(key, payload, ANSWER)])

        return remember

    def _key(self, job: Generation) -> str:
        prompt, how = job.prompt, job.prompt.sampling
        decides = [
            *self._decides, prompt.ids, prompt.max_new_tokens, prompt.stops, prompt.ignore_eos, prompt.stop_token_ids,
            job.scored, job.top, job.scores is not None, how.numbers, how.seed, astuple(how.adjustments),
        ]  # fmt: skip
        return (
            f"ttgpt:{SCHEMA}:{prompt.model.manifest.digest}:answer:{sha256(json.dumps(decides).encode()).hexdigest()}"
        )


def _payload(tokens: Sequence[Token], scores: Scores | None) -> bytes:
    end = tokens[-1].end if tokens else None
    reason = None if end is None else end.reason
    told = [[t.id, t.text, None if isnan(t.logprob) else t.logprob, t.special, t.top] for t in tokens]
    scored = None if scores is None else [part.tolist() for part in scores]
    return json.dumps([reason, told, scored]).encode()


def _readable(payloads: Iterable[tuple[str, bytes | None]]) -> dict[str, Answer]:
    """Return the answers by key, without what is missing or was written by another version."""
    found = {}
    for key, payload in payloads:
        with suppress(ValueError):
            if payload is not None:
                found[key] = _answer(payload)
    return found


def _answer(payload: bytes) -> Answer:
    reason, told, scored = REMEMBERED.validate_json(payload)
    if not (told or scored):
        raise ValueError("an answer has tokens or scores")
    end = None if reason is None else End(reason, "".join(text for _, text, *_ in told))
    tokens = [
        Token(token_id, text, nan if logprob is None else logprob, special, end if k == len(told) else None, top)
        for k, (token_id, text, logprob, special, top) in enumerate(told, 1)
    ]
    scores = None
    if scored is not None:
        own, ids, tops = scored
        scores = Scores(np.array(own, np.float32), np.array(ids, np.int32), np.array(tops, np.float32))
    return tokens, scores
