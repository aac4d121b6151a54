"""What goes over the wire under /v1; nothing else. Bodies are OpenAI's, and some fields are vLLM's.

vLLM's are `top_k`, `truncate_prompt_tokens`, `continuous_usage_stats` and those of `SamplingFields` that OpenAI lacks;
`typical_p` is TGI's.
Fields that are not supported are accepted at the value that changes nothing and refused otherwise.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from service.engine.generation import Finished
from service.http.sampling_fields import Penalty, SamplingFields
from service.http.schemas import (
    MAX_CHOICES,
    MAX_PROMPTS,
    MAX_TEXT_CHARACTERS,
    MAX_TOKENS,
    Body,
    EmbeddingInputs,
    Ids,
    Name,
    Seed,
    Stop,
    StopList,
    Text,
    TopK,
    inputs_tag,
    only,
    several,
)

MAX_LOGPROBS = 20
DEFAULT_MAX_TOKENS = 16


def _not_zero(value: int | None) -> int | None:
    if value == 0:
        raise ValueError("must be at least 1, or -1")
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
NO_TOOLS = "these are base models, which call nothing"
Suffix = Annotated[Any, only("", reason="these models read from left to right, and fill nothing in")]
Format = Annotated[Any, only({"type": "text"}, reason="texts are not held to a format")]
Tools = Annotated[Any, only([], reason=NO_TOOLS)]
ToolChoice = Annotated[Any, only("none", reason=NO_TOOLS)]
Dimensions = Annotated[Any, only(reason="vectors have the model's own width")]
Cut = Annotated[Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None, AfterValidator(_not_zero)]
User = Annotated[Text | None, Field(description="accepted, changes nothing")]
Stops = Annotated[StopList | None, BeforeValidator(_as_list, json_schema_input_type=Stop | StopList | None)]


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = Field(None, description="end with a chunk that has no choices but the usage")
    continuous_usage_stats: bool | None = Field(
        None, description="with include_usage: every chunk has the usage of its choice so far"
    )


class WritingFields(SamplingFields):
    """What completions and chats are both asked with."""

    model: Name | None = Field(None, description="the default model if left out")
    temperature: float | None = Field(None, ge=0, le=2, description="1 by default; 0 always takes the best token")
    top_p: float | None = Field(None, gt=0, le=1, description="draw among the likeliest tokens only")
    top_k: TopK = Field(None, description="draw among the k best tokens only; 0 and -1: all")
    frequency_penalty: Penalty | None = Field(
        None, description="subtracted from a token's logit as often as it was written"
    )
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="how many texts; text i has the seed plus i")
    seed: Seed = Field(None, description="the same seed gives the same text; -1: any")
    stop: Stops = Field(None, description="strings before which the text ends")
    stream: bool | None = Field(None, description="send every token as it comes")
    stream_options: StreamOptions | None = None
    response_format: Format = None
    tools: Tools = None
    tool_choice: ToolChoice = None
    functions: Tools = None
    function_call: ToolChoice = None
    user: User = None


class CompletionRequest(WritingFields):
    """POST /v1/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "The old man looked at the sea", "max_tokens": 20, "seed": 7},
                {
                    "prompt": "The old man looked at the sea",
                    "max_tokens": 20,
                    "min_p": 0.05,
                    "frequency_penalty": 0.5,
                    "logit_bias": {"0": -100},
                    "best_of": 2,
                    "seed": 7,
                },
            ]
        }
    )

    prompt: Prompts
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description="16 by default; at most the context, whose end is the text's; 0 only with echo",
    )
    typical_p: float | None = Field(None, gt=0, le=1, description="draw among typical tokens only")
    best_of: int | None = Field(
        None, ge=1, le=MAX_CHOICES, description="write so many texts, and tell the n that are likeliest per token"
    )
    truncate_prompt_tokens: Cut = Field(
        None, description="read the last so many tokens of a prompt; -1: as many as leave room for one more"
    )
    echo: bool | None = Field(None, description="put the prompt before the text")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="tell so many likeliest tokens, too")
    suffix: Suffix = None


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
    dimensions: Dimensions = None
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
