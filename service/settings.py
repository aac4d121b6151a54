"""All settings of the service; read once, in `service.__main__`, and handed down."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def available_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0))


class Settings(BaseSettings):
    """What an operator can choose; every field is the environment variable TTGPT_<FIELD>.

    Attributes:
        models: artefact folders, in the environment separated like PATH; served under the folder's name.
        default_model: name of the model that serves requests which name none; the first one by default.
        host, port: where to listen; port 0 takes any free one.
        threads: of one matrix product.
        max_active: requests that are worked on at the same time, each with a KV cache of its own.
        max_waiting: requests that may wait for that; more are refused with 429.
        max_body_bytes: longest request body.
        drain_seconds: how long a stopping server waits for the requests it has accepted.
        log_level: of the JSON logs on stderr; a request is logged at "debug".
    """

    model_config = SettingsConfigDict(env_prefix="TTGPT_", frozen=True, extra="forbid")

    models: Annotated[tuple[Path, ...], NoDecode] = Field(min_length=1)
    default_model: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    threads: int = Field(default_factory=available_cores, ge=1, le=1024)
    max_active: int = Field(8, ge=1, le=1024)
    max_waiting: int = Field(128, ge=0, le=65536)
    max_body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30)
    drain_seconds: int = Field(120, ge=0, le=86400)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.split(os.pathsep) if isinstance(value, str) else value
