"""What goes over the wire under /v1; nothing else. Bodies are OpenAI's, and some fields are vLLM's.

vLLM's are `top_k`, `repetition_penalty`, `ignore_eos` and `continuous_usage_stats`.
Fields that are not supported are accepted at the value that changes nothing and refused otherwise.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from service.engine.generation import Finished
from service.http.schemas import (
    MAX_IDS,
    MAX_PROMPTS,
    MAX_TEXT_CHARACTERS,
    MAX_TOKENS,
    Body,
    EmbeddingInputs,
    Id,
    Ids,
    Name,
    Nothing,
    OnlyOne,
    OnlyZero,
    Seed,
    Stop,
    StopList,
    Text,
    TopK,
    inputs_tag,
    several,
)

MAX_CHOICES = 4
MAX_LOGPROBS = 5
DEFAULT_MAX_TOKENS = 16


def _only_empty(value: object) -> object:
    if value:
        raise ValueError("is not supported; leave it out or send it empty")
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Prompts = Annotated[
    Annotated[Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)], Tag("text")]
    | Annotated[Annotated[list[Text], several(1, MAX_PROMPTS)], Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[Annotated[list[Ids], several(1, MAX_PROMPTS)], Tag("ids_list")],
    Discriminator(inputs_tag),
]
NoBiases = Annotated[dict[str, Any] | None, AfterValidator(_only_empty)]
NoTokens = Annotated[Annotated[list[Id], several(0, MAX_IDS)] | None, AfterValidator(_only_empty)]
NoText = Annotated[Text | None, AfterValidator(_only_empty)]
User = Annotated[Text | None, Field(description="accepted, changes nothing")]
Stops = Annotated[StopList | None, BeforeValidator(_as_list, json_schema_input_type=Stop | StopList | None)]


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = Field(None, description="end with a chunk that has no choices but the usage")
    continuous_usage_stats: bool | None = Field(
        None, description="with include_usage: every chunk has the usage of its choice so far"
    )


class CompletionRequest(Body):
    """POST /v1/completions."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The old man looked at the sea", "max_tokens": 20, "seed": 7}]}
    )

    prompt: Prompts
    model: Name | None = Field(None, description="the default model if left out")
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description="16 by default; at most the context, whose end is the text's; 0 only with echo",
    )
    temperature: float | None = Field(None, ge=0, le=2, description="1 by default; 0 always takes the best token")
    top_p: float | None = Field(None, gt=0, le=1, description="draw among the likeliest tokens only")
    top_k: TopK = Field(None, description="draw among the k best tokens only; 0 and -1: all")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="above 1: less likely to repeat itself")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="how many texts; text i has the seed plus i")
    seed: Seed = Field(None, description="the same seed gives the same text; -1: any")
    stop: Stops = Field(None, description="strings before which the text ends")
    ignore_eos: bool | None = Field(None, description="write on behind the end of the text, up to max_tokens")
    echo: bool | None = Field(None, description="put the prompt before the text")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="tell so many likeliest tokens, too")
    stream: bool | None = Field(None, description="send every token as it comes")
    stream_options: StreamOptions | None = None
    best_of: OnlyOne = None
    frequency_penalty: OnlyZero = None
    logit_bias: NoBiases = None
    min_p: OnlyZero = None
    min_tokens: OnlyZero = None
    presence_penalty: OnlyZero = None
    stop_token_ids: NoTokens = None
    suffix: NoText = None
    truncate_prompt_tokens: Nothing = None
    user: User = None


class Logprobs(Body):
    """The tokens of a text, each with what the model itself thinks of it, in nats.

    `tokens` are the pieces that the tokens released: together they are the text, so one that holds half a character
    or what may become a stop string is empty. `text_offset` is where each begins. The first token of an echoed
    prompt has no probability. `top_logprobs` is null where none were asked for; tokens that are not text are
    called by their bytes.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(Body):
    """One text, or in a stream the next piece of it."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Finished | None


class Usage(Body):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(Body):
    """The texts; in a stream, a chunk of one of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | None


class OpenAIEmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["The old man", "the sea"]}]})

    input: EmbeddingInputs
    model: Name | None = Field(None, description="the default model if left out")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Nothing = None
    user: User = None


class Embedding(Body):
    """The mean of the token vectors [D] of one input, at length 1; as base64, little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Body):
    """Tokens that were looked up."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Body):
    """One embedding per input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class OpenAIError(Body):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(Body):
    """What every failed request under /v1 gets."""

    error: OpenAIError


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
