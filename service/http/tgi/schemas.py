"""What goes over the wire; nothing else. Bodies are TGI's, `model` is our extension.

Fields of TGI that are not supported are accepted at the value that changes nothing and refused otherwise.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

MAX_SEED = 2**63 - 1
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 64
MAX_IDS = 2048
MAX_TEXT_CHARACTERS = 1 << 20
MAX_TOKENS = 1 << 16
MAX_NAME_CHARACTERS = 256


class Body(BaseModel):
    """Unknown fields are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def several(least: int, most: int) -> Any:
    """Return the bounds of a list, which is refused for the first thing that is wrong with it."""
    return Field(min_length=least, max_length=most, fail_fast=True)


def _only(neutral: object, value: object) -> object:
    if value is not None and value != neutral:
        alternative = "leave it out" if neutral is None else f"leave it out or send {str(neutral).lower()}"
        raise ValueError(f"is not supported; {alternative}")
    return value


Nothing = Annotated[Any, AfterValidator(partial(_only, None))]
OnlyFalse = Annotated[bool | None, AfterValidator(partial(_only, False))]
OnlyTrue = Annotated[bool | None, AfterValidator(partial(_only, True))]
OnlyZero = Annotated[float | None, AfterValidator(partial(_only, 0))]
OnlyOne = Annotated[float | None, AfterValidator(partial(_only, 1))]


def _unless(off: Sequence[int], value: int | None) -> int | None:
    return None if value in off else value


# What vLLM and llama.cpp call off, or any; the same as null.
TopK = Annotated[Annotated[int, Field(ge=-1, le=MAX_SEED)] | None, AfterValidator(partial(_unless, (-1, 0)))]
Seed = Annotated[Annotated[int, Field(ge=-1, le=MAX_SEED)] | None, AfterValidator(partial(_unless, (-1,)))]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopList = Annotated[list[Stop], several(0, MAX_STOPS)]


class Parameters(Body):
    """How to generate; null is the same as leaving a field out."""

    max_new_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="100 by default; at most the context, whose end is the text's"
    )
    do_sample: bool | None = Field(None, description="draw tokens instead of always taking the best one")
    temperature: float | None = Field(None, gt=0, le=100, description="other than 1: sampling is on")
    top_k: TopK = Field(None, description="sampling is on, among the k best tokens; 0 and -1: all")
    top_p: float | None = Field(None, gt=0, le=1, description="below 1: sampling is on, among the likeliest tokens")
    typical_p: float | None = Field(None, gt=0, le=1, description="below 1: sampling is on, among typical tokens only")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="above 1: less likely to repeat itself")
    seed: Seed = Field(None, description="the same seed gives the same text; -1: any")
    stop: StopList | None = Field(None, description="strings before which the text ends")
    return_full_text: bool | None = Field(None, description="put the prompt before the text")
    details: bool | None = Field(None, description="tell the tokens, the seed and why the text ended")
    adapter_id: Nothing = None
    best_of: OnlyOne = None
    decoder_input_details: OnlyFalse = None
    frequency_penalty: OnlyZero = None
    grammar: Nothing = None
    top_n_tokens: OnlyZero = None
    truncate: Nothing = None
    watermark: OnlyFalse = None


class _Prompted(Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": "The old man looked at the sea", "parameters": {"max_new_tokens": 20}}]
        }
    )

    inputs: Text
    parameters: Parameters | None = None
    model: Name | None = None


class GenerateRequest(_Prompted):
    """POST /generate."""

    stream: OnlyFalse = None


class GenerateStreamRequest(_Prompted):
    """POST /generate_stream."""

    stream: OnlyTrue = None


class CompatRequest(_Prompted):
    """POST /, where `stream` chooses between the two."""

    stream: bool | None = None


class TokenInfo(Body):
    """One generated token.

    `text` is what the token released: the texts of all tokens are the generated text. It is empty for
    half a character and for what may become a stop string. `logprob` is the model's own, in nats.
    """

    id: int
    text: str
    logprob: float
    special: bool


FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Details(Body):
    """How a text came about. `seed` is null if nothing was drawn."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[TokenInfo]
    tokens: list[TokenInfo]


class GenerateResponse(Body):
    """A generated text; it ends before the stop string, if there was one."""

    generated_text: str
    details: Details | None = None


class StreamDetails(Body):
    """How a streamed text came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamEvent(Body):
    """One token of a stream; the last one brings the whole text and the details."""

    index: int
    token: TokenInfo
    generated_text: str | None
    details: StreamDetails | None


class ErrorBody(Body):
    """What every failed request gets."""

    error: str
    error_type: str


Id = Annotated[int, Field(ge=0, lt=2**31)]
Texts = Annotated[list[Text], several(1, MAX_IDS)]
Ids = Annotated[list[Id], several(1, MAX_IDS)]
IdLists = Annotated[list[Annotated[list[Id], several(0, MAX_IDS)]], several(1, MAX_IDS)]


def inputs_tag(inputs: object) -> str:
    """Return which kind of inputs this is meant to be."""
    if not isinstance(inputs, list):
        return "text"
    first = inputs[0] if inputs else None
    if isinstance(first, list):
        return "ids_list"
    return "ids" if isinstance(first, int) else "texts"


EmbeddingInputs = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS), Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[IdLists, Tag("ids_list")],
    Discriminator(inputs_tag),
]


class EmbeddingRequest(Body):
    """POST /embeddings: a text, texts, the ids of a text, or of several."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": ["The old man", "the sea"]}]})

    inputs: EmbeddingInputs
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None


class TokenizeRequest(Body):
    """POST /tokenize."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "The old man"}]})

    inputs: Text
    model: Name | None = None


class TextToken(Body):
    """One token of a text, and the characters of the text that it stands for or has a share in."""

    id: int
    text: str
    start: int
    stop: int


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [464, 640]}]})

    ids: Annotated[list[Id], several(0, MAX_IDS)]
    model: Name | None = None


class DetokenizeResponse(Body):
    """The text of some tokens; special ones have none."""

    text: str


class ModelInfo(Body):
    """One loaded artefact. `bytes_*` are of all weights: on disk, while serving, and as a dense fp32 model."""

    model_id: str
    model_sha: str
    method: str
    source: str
    context: int
    vocabulary: int
    width: int
    layers: int
    bytes_disk: int
    bytes_resident: int
    bytes_dense_fp32: int
    perplexity_ratio: float | None


class InfoResponse(Body):
    """GET /info: TGI's fields, of the default model, and all models."""

    model_id: str
    model_sha: str
    model_device_type: Literal["cpu"] = "cpu"
    max_concurrent_requests: int
    max_best_of: int = 1
    max_stop_sequences: int = MAX_STOPS
    max_input_tokens: int
    max_total_tokens: int
    router: Literal["ttgpt"] = "ttgpt"
    version: str
    models: list[ModelInfo]


class TokenVectors(Body):
    """The vectors [M, D] of one input's M tokens.

    As base64, `vectors` is one string: little-endian float32, row after row.
    """

    index: int
    ids: list[int]
    tokens: list[str]
    vectors: list[list[float]] | str


class EmbeddingResponse(Body):
    """One vector per token; `dim` is D."""

    model: str
    dim: int
    data: list[TokenVectors]


class ModelCard(Body):
    """One loaded model, in OpenAI's shape."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["ttgpt"] = "ttgpt"


class ModelList(Body):
    """GET /v1/models; the default model comes first."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Status(Body):
    """What a probe reads."""

    status: str
