"""What the bodies of completions ask of the engine."""

import time
from dataclasses import dataclass, replace

from service.engine.generation import Generation, Prompt, Token, draw_seed
from service.engine.jobs import Mailbox
from service.engine.models import LoadedModel
from service.engine.sampling import Sampling
from service.errors import InvalidRequestError
from service.http.intake import as_inputs, check_ids, encode, encode_end, new_tokens
from service.http.openai.schemas import DEFAULT_MAX_TOKENS, CompletionRequest
from service.http.sampling_fields import adjustments_of, stop_tokens
from service.http.schemas import MAX_SEED
from service.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class CompletionJobs:
    """What one request wants.

    Attributes:
        name: the completion's id.
        body: the request.
        model: that writes.
        prompts: ids of each prompt; its texts follow each other.
        echoes: text of each prompt, None if it came as ids or may have been cut.
        jobs: one per text; if nothing is to be written, one per prompt that is to be scored. The first one of a
            prompt scores it, if that is wanted.
        created: seconds since 1970.
    """

    name: str
    body: CompletionRequest
    model: LoadedModel
    prompts: list[tuple[int, ...]]
    echoes: list[str | None]
    jobs: list[Generation]
    created: int

    @property
    def choices(self) -> int:
        """How many texts are told per prompt."""
        return self.body.n or 1

    @property
    def texts(self) -> int:
        """How many texts there are per prompt."""
        return _texts(self.body)

    @property
    def mailboxes(self) -> list[Mailbox[Token]]:
        """Where the results come."""
        return [job.mailbox for job in self.jobs]


async def completion_jobs(body: CompletionRequest, name: str, model: LoadedModel, metrics: Metrics) -> CompletionJobs:
    """Return what a request wants.

    Raises:
        InvalidRequestError: naming the field that is out of range.
    """
    _check(body)
    inputs = as_inputs(body.prompt)
    longest = _longest(body, model)
    prompts = [await _ids(i, model, longest) for i in inputs]
    scored = body.logprobs is not None
    jobs = [
        Generation(
            prompt,
            metrics,
            streamed=bool(body.stream),
            scored=scored or _texts(body) > (body.n or 1),
            top=body.logprobs or 0,
            prompt_scored=scored and bool(body.echo) and number == 0,
        )
        for ids in prompts
        for number, prompt in enumerate(_prompts(ids, body, model))
    ]
    return CompletionJobs(
        name=name,
        body=body,
        model=model,
        prompts=prompts,
        echoes=[text if isinstance(text, str) and longest is None else None for text in inputs],
        jobs=jobs,
        created=int(time.time()),
    )


def _check(body: CompletionRequest) -> None:
    """Refuse fields that do not go together."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options: needs stream")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequestError("max_tokens: must be at least 1, or 0 with echo")
    n, best_of = body.n or 1, body.best_of
    if best_of is not None and best_of < n:
        raise InvalidRequestError(f"best_of: must be at least n, {n}, not {best_of}")
    if best_of is not None and best_of > n and body.stream:
        raise InvalidRequestError(f"best_of: must be n, {n}, in a stream, not {best_of}")


def _texts(body: CompletionRequest) -> int:
    """Return how many texts are written per prompt."""
    n = body.n or 1
    return n if body.max_tokens == 0 else body.best_of or n


def _longest(body: CompletionRequest, model: LoadedModel) -> int | None:
    """Return how many tokens of a prompt are read at most; None if it has to fit."""
    if body.truncate_prompt_tokens == -1:
        return model.context if body.max_tokens == 0 else model.context - 1
    return body.truncate_prompt_tokens


async def _ids(prompt: str | list[int], model: LoadedModel, longest: int | None) -> tuple[int, ...]:
    """Return the ids of a prompt, or the last ones."""
    if not isinstance(prompt, str):
        check_ids(prompt, model, "prompt")
        prompt = prompt if longest is None else prompt[-longest:]
    elif longest is None:
        prompt = await encode(prompt, model, model.context, "prompt")
    else:
        prompt = await encode_end(prompt, model, longest, "truncate_prompt_tokens")
    if len(prompt) > model.context:
        raise InvalidRequestError(f"prompt: {len(prompt)} tokens are more than the {model.context} that fit")
    return tuple(prompt or [model.eos_id])


def _prompts(ids: tuple[int, ...], body: CompletionRequest, model: LoadedModel) -> list[Prompt]:
    """Return what the generations of one prompt have to do; as if every prompt were asked for alone."""
    asked = min(DEFAULT_MAX_TOKENS, model.context) if body.max_tokens is None else body.max_tokens
    sampling = _sampling(body, model, asked)
    if not asked:
        scored = Prompt(model=model, ids=ids, max_new_tokens=0, sampling=Sampling())
        return [] if body.logprobs is None else [scored]
    length = new_tokens(len(ids), asked, model.context, "max_tokens")
    seed = draw_seed() if body.seed is None else body.seed
    prompt = Prompt(
        model=model,
        ids=ids,
        max_new_tokens=length,
        sampling=sampling,
        stops=tuple(body.stop or ()),
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=stop_tokens(body),
    )
    return [replace(prompt, sampling=_seeded(sampling, seed + i)) for i in range(_texts(body))]


def _sampling(body: CompletionRequest, model: LoadedModel, asked: int) -> Sampling:
    """Return how tokens are chosen, with any seed if they are drawn."""
    adjustments = replace(
        adjustments_of(body, model, ("max_tokens", asked)), frequency_penalty=body.frequency_penalty or 0.0
    )
    if body.temperature == 0:
        return Sampling(adjustments=adjustments)
    return Sampling(
        seed=0,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k,
        top_p=1.0 if body.top_p is None else body.top_p,
        typical_p=1.0 if body.typical_p is None else body.typical_p,
        min_p=body.min_p or 0.0,
        adjustments=adjustments,
        repeatable=body.seed is not None,
    )


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=seed % (MAX_SEED + 1))
