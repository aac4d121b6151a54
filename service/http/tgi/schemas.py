"""What goes over the wire on the routes of TGI; nothing else. `model` is our extension."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from service.engine.generation import FinishReason
from service.http.sampling_fields import Penalty, SamplingFields
from service.http.schemas import (
    MAX_CHOICES,
    MAX_IDS,
    MAX_STOPS,
    MAX_TOKENS,
    Body,
    EmbeddingInputs,
    Id,
    Name,
    OnlyFalse,
    OnlyTrue,
    Seed,
    StopList,
    Text,
    TopK,
    only,
    several,
)

MAX_TOP_TOKENS = 5

Adapter = Annotated[Any, only(reason="there are no adapters")]
Grammar = Annotated[Any, only(reason="texts are not held to a grammar")]
Watermark = Annotated[bool | None, only(False, reason="texts are not watermarked")]


class Parameters(SamplingFields):
    """How to generate; null is the same as leaving a field out. Those of `SamplingFields` are not TGI's."""

    max_new_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="100 by default; at most the context, whose end is the text's"
    )
    do_sample: bool | None = Field(None, description="draw tokens instead of always taking the best one")
    best_of: int | None = Field(
        None, ge=1, le=MAX_CHOICES, description="draw so many texts; the likeliest one per token is the answer"
    )
    temperature: float | None = Field(None, gt=0, le=100, description="other than 1: sampling is on")
    top_k: TopK = Field(None, description="sampling is on, among the k best tokens; 0 and -1: all")
    top_p: float | None = Field(None, gt=0, le=1, description="below 1: sampling is on, among the likeliest tokens")
    typical_p: float | None = Field(None, gt=0, le=1, description="below 1: sampling is on, among typical tokens only")
    min_p: float | None = Field(
        None, ge=0, le=1, description="above 0: sampling is on, among tokens with this share of the best one's odds"
    )
    frequency_penalty: Penalty | None = Field(
        None, description="times the share of the text, prompt included, that a token is: subtracted from its logit"
    )
    seed: Seed = Field(None, description="the same seed gives the same text; -1: any")
    stop: StopList | None = Field(None, description="strings before which the text ends")
    truncate: int | None = Field(None, ge=1, le=MAX_TOKENS, description="read the last so many tokens of the prompt")
    return_full_text: bool | None = Field(None, description="put the prompt before the text")
    details: bool | None = Field(None, description="tell the tokens, the seed and why the text ended")
    decoder_input_details: bool | None = Field(
        None, description="with all details, tell the prompt's tokens, too; not in a stream"
    )
    top_n_tokens: int | None = Field(
        None, ge=0, le=MAX_TOP_TOKENS, description="tell so many likeliest tokens beside each"
    )
    adapter_id: Adapter = None
    grammar: Grammar = None
    watermark: Watermark = None


class _Prompted(Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": "The old man looked at the sea", "parameters": {"max_new_tokens": 20}},
                {
                    "inputs": "The old man looked at the sea",
                    "parameters": {"max_new_tokens": 20, "min_p": 0.05, "presence_penalty": 0.5, "seed": 7},
                },
            ]
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


class PrefillToken(Body):
    """One token of the prompt. The first one has no log-probability."""

    id: int
    text: str
    logprob: float | None


class SequenceDetails(Body):
    """How a text came about. `seed` is null if nothing was drawn.

    `prefill` are the prompt's tokens, if they were asked for; `top_tokens` the likeliest ones in the place of each
    token, the best first, there only if they were asked for.
    """

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[TokenInfo]
    top_tokens: list[list[TokenInfo]] | None = None


class OtherSequence(SequenceDetails):
    """One of the texts that were drawn and are less likely than the answer."""

    generated_text: str


class Details(SequenceDetails):
    """How the answer came about; `best_of_sequences` are there only if several texts were drawn."""

    best_of_sequences: list[OtherSequence] | None = None


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
    """One token of a stream; the last one brings the whole text and the details.

    `top_tokens` are the likeliest ones in its place, there only if they were asked for.
    """

    index: int
    token: TokenInfo
    top_tokens: list[TokenInfo] | None = None
    generated_text: str | None
    details: StreamDetails | None


class ErrorBody(Body):
    """What every failed request gets."""

    error: str
    error_type: str


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
    """One served artefact. `bytes_*` are of all weights: on disk, while serving, and as a dense fp32 model.

    `perplexity` was measured when it was made, `perplexity_ratio` is that to the dense model's; `draft` is the model
    that proposes tokens to it.
    """

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
    perplexity: float
    perplexity_ratio: float | None
    draft: str | None


class InfoResponse(Body):
    """GET /info: TGI's fields, of the default model, and all models."""

    model_id: str
    model_sha: str
    model_device_type: Literal["cpu"] = "cpu"
    max_concurrent_requests: int
    max_best_of: int = MAX_CHOICES
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


class Status(Body):
    """What a probe reads."""

    status: str
