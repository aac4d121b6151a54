"""What the bodies of both kinds of routes are made of.

Fields that are not supported are accepted at the value that changes nothing and refused otherwise, with the reason.
"""

import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

MAX_SEED = 2**63 - 1
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 64
MAX_CHOICES = 4
MAX_IDS = 2048
MAX_PROMPTS = 32
MAX_TEXT_CHARACTERS = 1 << 20
MAX_TOKENS = 1 << 16
MAX_NAME_CHARACTERS = 256


class Body(BaseModel):
    """Unknown fields are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def several(least: int, most: int) -> Any:
    """Return the bounds of a list, which is refused for the first thing that is wrong with it."""
    return Field(min_length=least, max_length=most, fail_fast=True)


def _only(neutral: Sequence[object], reason: str, value: object) -> object:
    if value is not None and value not in neutral:
        alternatives = "".join(f" or send {json.dumps(same)}" for same in neutral)
        raise ValueError(f"is not supported: {reason}; leave it out{alternatives}")
    return value


def only(*neutral: object, reason: str) -> Any:
    """Return what refuses, for a reason, every value but null and some that change nothing."""
    return AfterValidator(partial(_only, neutral, reason))


OnlyFalse = Annotated[bool | None, only(False, reason="this route does not stream")]
OnlyTrue = Annotated[bool | None, only(True, reason="this route streams")]


def _unless(off: Sequence[int], value: int | None) -> int | None:
    return None if value in off else value


# What vLLM and llama.cpp call off, or any; the same as null.
TopK = Annotated[Annotated[int, Field(ge=-1, le=MAX_SEED)] | None, AfterValidator(partial(_unless, (-1, 0)))]
Seed = Annotated[Annotated[int, Field(ge=-1, le=MAX_SEED)] | None, AfterValidator(partial(_unless, (-1,)))]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopList = Annotated[list[Stop], several(0, MAX_STOPS)]


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
