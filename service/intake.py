"""From wire bodies to work for the engine: what a body means for one model, and whether it fits."""

import asyncio
from collections.abc import Sequence

from service.errors import InvalidRequestError
from service.generation import Prompt, draw_seed
from service.models import LoadedModel
from service.sampling import Sampling
from service.schemas import MAX_IDS, EmbeddingInputs, Parameters

DEFAULT_NEW_TOKENS = 100


async def prompt_of(text: str, parameters: Parameters, model: LoadedModel) -> Prompt:
    """Return the prompt that a request stands for.

    Raises:
        InvalidRequestError: if prompt and continuation do not fit into the model's context.
    """
    ids = await encode(text, model, model.context) or [model.eos_id]
    return Prompt(
        model=model,
        ids=tuple(ids),
        max_new_tokens=_new_tokens(len(ids), parameters.max_new_tokens, model.context),
        sampling=sampling_of(parameters),
        stops=tuple(parameters.stop or ()),
    )


async def encode(text: str, model: LoadedModel, limit: int) -> list[int]:
    """Return the ids of `text`, at most `limit`, without holding up the event loop.

    Raises:
        InvalidRequestError: if there are more; for hopelessly long texts without counting them.
    """
    at_least = len(text) // model.vocabulary.longest_bytes
    if at_least > limit:
        raise InvalidRequestError(f"inputs: at least {at_least} tokens are more than the {limit} that fit")
    ids = await asyncio.to_thread(model.encode, text)
    if len(ids) > limit:
        raise InvalidRequestError(f"inputs: {len(ids)} tokens are more than the {limit} that fit")
    return ids


def _new_tokens(prompt_tokens: int, asked: int | None, context: int) -> int:
    left = context - prompt_tokens
    wanted = min(DEFAULT_NEW_TOKENS, max(left, 1)) if asked is None else asked
    if wanted > left:
        raise InvalidRequestError(
            f"parameters.max_new_tokens: {prompt_tokens} prompt tokens and {wanted} new ones are more than "
            f"the context of {context}; shorten the prompt or ask for at most {max(left, 0)}"
        )
    return wanted


def sampling_of(parameters: Parameters) -> Sampling:
    """Return how tokens are chosen; as in TGI, any parameter of the draw turns sampling on."""
    temperature = 1.0 if parameters.temperature is None else parameters.temperature
    top_p = 1.0 if parameters.top_p is None else parameters.top_p
    drawn = bool(parameters.do_sample) or temperature != 1 or parameters.top_k is not None or top_p != 1
    seed = draw_seed() if parameters.seed is None else parameters.seed
    return Sampling(
        seed=seed if drawn else None,
        temperature=temperature,
        top_k=parameters.top_k,
        top_p=top_p,
        repetition_penalty=1.0 if parameters.repetition_penalty is None else parameters.repetition_penalty,
    )


async def ids_of(inputs: EmbeddingInputs, model: LoadedModel) -> list[list[int]]:
    """Return the ids of every input of an embedding request.

    Raises:
        InvalidRequestError: if an id is not in the vocabulary, or there are none or too many.
    """
    rows = [await encode(i, model, MAX_IDS) if isinstance(i, str) else i for i in _as_inputs(inputs)]
    total = sum(map(len, rows))
    if not 1 <= total <= MAX_IDS:
        raise InvalidRequestError(f"inputs: a request must have between 1 and {MAX_IDS} tokens, not {total}")
    highest = max(max(row, default=0) for row in rows)
    if highest >= model.gpt2.config.vocab_size:
        raise InvalidRequestError(
            f"inputs: ids must be below the vocabulary of {model.gpt2.config.vocab_size}, not {highest}"
        )
    return rows


def _as_inputs(inputs: EmbeddingInputs) -> Sequence[str | list[int]]:
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs[0], int):
        return [[i for i in inputs if isinstance(i, int)]]
    return [i for i in inputs if not isinstance(i, int)]
