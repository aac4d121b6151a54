"""From wire bodies to work for the engine: what a body means for one model, and whether it fits."""

import asyncio
from collections.abc import Sequence

from service.errors import InvalidRequestError
from service.generation import Prompt, draw_seed
from service.models import LoadedModel
from service.sampling import Sampling
from service.schemas import MAX_IDS, EmbeddingInputs, Parameters

DEFAULT_NEW_TOKENS = 100
SHORT_CHARACTERS = 1024  # encoded in less time than another thread takes to begin


async def prompt_of(text: str, parameters: Parameters, model: LoadedModel) -> Prompt:
    """Return the prompt that a request stands for.

    Raises:
        InvalidRequestError: if prompt and continuation do not fit into the model's context.
    """
    ids = await encode(text, model, model.context) or [model.eos_id]
    return Prompt(
        model=model,
        ids=tuple(ids),
        max_new_tokens=new_tokens(len(ids), parameters.max_new_tokens, model.context),
        sampling=sampling_of(parameters),
        stops=tuple(parameters.stop or ()),
    )


async def encode(text: str, model: LoadedModel, limit: int, field: str = "inputs") -> list[int]:
    """Return the ids of `text`, at most `limit`, without holding up the event loop.

    Raises:
        InvalidRequestError: if there are more; for hopelessly long texts without counting them.
    """
    at_least = len(text) // model.vocabulary.longest_bytes
    if at_least > limit:
        raise InvalidRequestError(f"{field}: at least {at_least} tokens are more than the {limit} that fit")
    short = len(text) <= SHORT_CHARACTERS
    ids = model.encode(text) if short else await asyncio.to_thread(model.encode, text)
    if len(ids) > limit:
        raise InvalidRequestError(f"{field}: {len(ids)} tokens are more than the {limit} that fit")
    return ids


async def encode_with_offsets(text: str, model: LoadedModel, limit: int) -> list[tuple[int, tuple[int, int]]]:
    """Return the ids of `text`, at most `limit`, each with the characters it stands for; raises like `encode`."""
    await encode(text, model, limit)
    encoding = await asyncio.to_thread(model.tokenizer.encode, text)
    return list(zip(encoding.ids, encoding.offsets, strict=True))


def new_tokens(prompt_tokens: int, asked: int | None, context: int, field: str = "parameters.max_new_tokens") -> int:
    """Return how many tokens may be written, the context's rest up to a default if none were asked for.

    Raises:
        InvalidRequestError: naming the field, if they do not fit into the context.
    """
    left = context - prompt_tokens
    wanted = min(DEFAULT_NEW_TOKENS, max(left, 1)) if asked is None else asked
    if wanted > left:
        raise InvalidRequestError(
            f"{field}: {prompt_tokens} prompt tokens and {wanted} new ones are more than "
            f"the context of {context}; shorten the prompt or ask for at most {max(left, 0)}"
        )
    return wanted


def sampling_of(parameters: Parameters) -> Sampling:
    """Return how tokens are chosen; as in TGI, any parameter of the draw turns sampling on."""
    temperature = 1.0 if parameters.temperature is None else parameters.temperature
    top_p = 1.0 if parameters.top_p is None else parameters.top_p
    typical_p = 1.0 if parameters.typical_p is None else parameters.typical_p
    warped = temperature != 1 or parameters.top_k is not None or top_p != 1 or typical_p != 1
    drawn = bool(parameters.do_sample) or warped
    seed = draw_seed() if parameters.seed is None else parameters.seed
    return Sampling(
        seed=seed if drawn else None,
        temperature=temperature,
        top_k=parameters.top_k,
        top_p=top_p,
        typical_p=typical_p,
        repetition_penalty=1.0 if parameters.repetition_penalty is None else parameters.repetition_penalty,
        repeatable=parameters.seed is not None or not drawn,
    )


async def ids_of(inputs: EmbeddingInputs, model: LoadedModel, field: str = "inputs") -> list[list[int]]:
    """Return the ids of every input of an embedding request.

    Raises:
        InvalidRequestError: if an id is not in the vocabulary, or there are none or too many.
    """
    rows = [await encode(i, model, MAX_IDS, field) if isinstance(i, str) else i for i in as_inputs(inputs)]
    total = sum(map(len, rows))
    if not 1 <= total <= MAX_IDS:
        raise InvalidRequestError(f"{field}: a request must have between 1 and {MAX_IDS} tokens, not {total}")
    for row in rows:
        check_ids(row, model, field)
    return rows


def check_ids(ids: Sequence[int], model: LoadedModel, field: str) -> None:
    """Refuse ids that no token has; raises InvalidRequestError, naming the field."""
    size, highest = model.gpt2.config.vocab_size, max(ids, default=0)
    if highest >= size:
        raise InvalidRequestError(f"{field}: ids must be below the vocabulary of {size}, not {highest}")


def as_inputs(inputs: EmbeddingInputs) -> Sequence[str | list[int]]:
    """Return one text, or the ids of one, per input."""
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs[0], int):
        return [[i for i in inputs if isinstance(i, int)]]
    return [i for i in inputs if not isinstance(i, int)]
