"""What the bodies of TGI's routes ask of the engine."""

from dataclasses import replace

from service.engine.generation import Generation, Prompt, draw_seed
from service.engine.models import LoadedModel
from service.engine.sampling import Sampling
from service.errors import InvalidRequestError
from service.http.intake import DEFAULT_NEW_TOKENS, encode, encode_end, new_tokens
from service.http.sampling_fields import adjustments_of, stop_tokens
from service.http.schemas import MAX_SEED
from service.http.tgi.schemas import Parameters
from service.metrics import Metrics

AT = "parameters."


async def generations_of(
    text: str, parameters: Parameters, model: LoadedModel, metrics: Metrics, *, streamed: bool
) -> list[Generation]:
    """Return what the engine has to do: a text, or several, the best of which is the answer.

    Raises:
        InvalidRequestError: naming the field that is out of range.
    """
    best_of, told = parameters.best_of or 1, streamed or has_details(parameters)
    _check_stream(parameters, streamed=streamed)
    prompt = await _prompt(text, parameters, model)
    sampling = prompt.sampling
    if best_of > 1 and sampling.seed is None:
        raise InvalidRequestError(f"{AT}best_of: must be 1 unless tokens are drawn (do_sample): all texts are the same")
    seeds = [sampling.seed if sampling.seed is None else (sampling.seed + i) % (MAX_SEED + 1) for i in range(best_of)]
    return [
        Generation(
            replace(prompt, sampling=replace(sampling, seed=seed)),
            metrics,
            streamed=streamed,
            scored=told or best_of > 1,
            top=(parameters.top_n_tokens or 0) if told else 0,
            prompt_scored=bool(parameters.decoder_input_details) and number == 0,
        )
        for number, seed in enumerate(seeds)
    ]


def has_details(parameters: Parameters) -> bool:
    """Return whether a text that is not streamed comes with details."""
    return bool(parameters.details or parameters.decoder_input_details)


def _check_stream(parameters: Parameters, *, streamed: bool) -> None:
    if streamed and (parameters.best_of or 1) > 1:
        raise InvalidRequestError(f"{AT}best_of: must be 1 in a stream, not {parameters.best_of}")
    if streamed and parameters.decoder_input_details:
        raise InvalidRequestError(f"{AT}decoder_input_details: must be false in a stream")


async def _prompt(text: str, parameters: Parameters, model: LoadedModel) -> Prompt:
    if parameters.truncate is None:
        ids = await encode(text, model, model.context)
    else:
        ids = await encode_end(text, model, parameters.truncate, f"{AT}truncate")
    ids = ids or [model.eos_id]
    return Prompt(
        model=model,
        ids=tuple(ids),
        max_new_tokens=new_tokens(len(ids), parameters.max_new_tokens, model.context),
        sampling=sampling_of(parameters, model),
        stops=tuple(parameters.stop or ()),
        ignore_eos=bool(parameters.ignore_eos),
        stop_token_ids=stop_tokens(parameters),
    )


def sampling_of(parameters: Parameters, model: LoadedModel) -> Sampling:
    """Return how tokens are chosen; as in TGI, any parameter of the draw turns sampling on."""
    temperature = 1.0 if parameters.temperature is None else parameters.temperature
    top_p = 1.0 if parameters.top_p is None else parameters.top_p
    typical_p = 1.0 if parameters.typical_p is None else parameters.typical_p
    min_p = parameters.min_p or 0.0
    warped = temperature != 1 or parameters.top_k is not None or top_p != 1 or typical_p != 1 or min_p > 0
    is_sampled = bool(parameters.do_sample) or warped
    seed = draw_seed() if parameters.seed is None else parameters.seed
    asked = DEFAULT_NEW_TOKENS if parameters.max_new_tokens is None else parameters.max_new_tokens
    adjustments = adjustments_of(parameters, model, ("max_new_tokens", asked), AT)
    return Sampling(
        seed=seed if is_sampled else None,
        temperature=temperature,
        top_k=parameters.top_k,
        top_p=top_p,
        typical_p=typical_p,
        min_p=min_p,
        adjustments=replace(adjustments, share_penalty=parameters.frequency_penalty or 0.0),
        repeatable=parameters.seed is not None or not is_sampled,
    )
