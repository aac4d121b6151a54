"""The fields of a body that say how tokens are chosen and when a text ends, on all routes the same."""

from collections.abc import Mapping
from re import fullmatch
from typing import Annotated

from pydantic import AfterValidator, Field

from service.engine.adjustments import Adjustments
from service.engine.models import LoadedModel
from service.errors import InvalidRequestError
from service.http.intake import check_ids
from service.http.schemas import MAX_TOKENS, Body, Id, several

MAX_BIASES = 300
MAX_STOP_TOKENS = 128
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
TOKEN_ID = "0|[1-9][0-9]{0,9}"  # noqa: S105 - digits


def _check_names(biases: dict[str, float] | None) -> dict[str, float] | None:
    if not all(fullmatch(TOKEN_ID, name) for name in biases or ()):
        raise ValueError('must name tokens by their ids, such as "464"')
    return biases


Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
LogitBias = Annotated[
    Annotated[
        dict[str, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
        Field(max_length=MAX_BIASES, json_schema_extra={"propertyNames": {"pattern": f"^({TOKEN_ID})$"}}),
    ]
    | None,
    AfterValidator(_check_names),
]


class SamplingFields(Body):
    """Null is the same as leaving a field out."""

    min_p: float | None = Field(
        None, ge=0, le=1, description="draw among tokens with at least this share of the best one's probability only"
    )
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="above 1: less likely to repeat itself")
    presence_penalty: Penalty | None = Field(None, description="subtracted from logits of tokens that were written")
    logit_bias: LogitBias = Field(
        None, description="ids of tokens, and what is added to their logits before everything else"
    )
    min_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="so many tokens are written before the text may end"
    )
    ignore_eos: bool | None = Field(None, description="write on behind the end of the text, up to the longest length")
    stop_token_ids: Annotated[list[Id], several(0, MAX_STOP_TOKENS)] | None = Field(
        None, description="tokens that end the text, which they are not part of"
    )


def adjustments_of(fields: SamplingFields, model: LoadedModel, asked: tuple[str, int], at: str = "") -> Adjustments:
    """Return what is done to the logits of a request, but for the frequency penalty.

    Args:
        fields: of the body.
        model: that writes.
        asked: name and value of the field that says how many tokens are written at most.
        at: what stands before the names of fields in errors.

    Raises:
        InvalidRequestError: naming the field, if a token is not in the vocabulary, or more tokens have to be written
            than may be.
    """
    biases: Mapping[str, float] = fields.logit_bias or {}
    bias, stops = tuple((int(name), value) for name, value in biases.items()), stop_tokens(fields)
    check_ids([token_id for token_id, _ in bias], model, f"{at}logit_bias")
    check_ids(stops, model, f"{at}stop_token_ids")
    least, (name, most) = fields.min_tokens or 0, asked
    if least > most:
        raise InvalidRequestError(f"{at}min_tokens: must be at most {name}, {most}, not {least}")
    return Adjustments(
        logit_bias=bias,
        repetition_penalty=1.0 if fields.repetition_penalty is None else fields.repetition_penalty,
        presence_penalty=fields.presence_penalty or 0.0,
        min_tokens=least,
        ends=(model.eos_id, *stops) if least else (),
    )


def stop_tokens(fields: SamplingFields) -> tuple[int, ...]:
    """Return the tokens that end a text besides the usual one."""
    return tuple(fields.stop_token_ids or ())
