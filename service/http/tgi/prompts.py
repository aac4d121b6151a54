"""What the bodies of TGI's routes ask of the engine."""

from service.engine.generation import Prompt, draw_seed
from service.engine.models import LoadedModel
from service.engine.sampling import Sampling
from service.http.intake import encode, new_tokens
from service.http.tgi.schemas import Parameters


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


def sampling_of(parameters: Parameters) -> Sampling:
    """Return how tokens are chosen; as in TGI, any parameter of the draw turns sampling on."""
    temperature = 1.0 if parameters.temperature is None else parameters.temperature
    top_p = 1.0 if parameters.top_p is None else parameters.top_p
    typical_p = 1.0 if parameters.typical_p is None else parameters.typical_p
    warped = temperature != 1 or parameters.top_k is not None or top_p != 1 or typical_p != 1
    is_sampled = bool(parameters.do_sample) or warped
    seed = draw_seed() if parameters.seed is None else parameters.seed
    return Sampling(
        seed=seed if is_sampled else None,
        temperature=temperature,
        top_k=parameters.top_k,
        top_p=top_p,
        typical_p=typical_p,
        repetition_penalty=1.0 if parameters.repetition_penalty is None else parameters.repetition_penalty,
        repeatable=parameters.seed is not None or not is_sampled,
    )
