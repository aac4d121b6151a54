"""All settings of the service; read once, in `service.__main__`, and handed down."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.threads import compute_threads


class Settings(BaseSettings):
    """What an operator can choose; every field is the environment variable TTGPT_<FIELD>.

    Attributes:
        models: artefact folders, in the environment separated like PATH; served under the folder's name.
        default_model: name of the model that serves requests which name none; the first one by default.
        host, port: where to listen; port 0 takes any free one.
        threads: of one matrix product; by default the cores of the cgroup's quota and cpuset.
        max_batch: requests of one model that are worked on at the same time, each with a slot of its KV cache.
        max_waiting: requests that may wait for that; more are refused with 429.
        max_tokens: of the prompts and longest answers of all accepted requests; more are refused with 429.
        request_seconds: how long a request may take before it is given up with 504.
        heartbeat_seconds: how long one round of the engine may last before /livez says that it hangs.
        api_key_hashes: SHA-256 of the keys that clients may use, in hexadecimal, in the environment separated by
            commas; without any, everybody may do everything.
        cors_origins: web pages that may call the service, in the environment separated by commas; "*" for all.
        prefill_chunk: tokens of prompts that are read, or scored, in one step, which all running requests wait for.
        reproducible: give the same seed the same text in any batch, also where that costs speed.
        kv_dtype: numbers of the KV cache.
        kv_bytes: the most that all KV caches may occupy; half the memory limit by default.
        max_body_bytes: longest request body.
        drain_seconds: how long a stopping server waits for the requests it has accepted.
        cache: of contracted cores: "auto" passes a tier by where contracting is faster, "always" never does; or "off".
        cache_bytes: what it may occupy in this process.
        cache_answers: remember whole answers, too, if they are greedy or seeded; they stand in Redis as plain text.
        redis_url: of the tier that replicas share; none by default.
        cache_timeout_ms: how long a request may wait for Redis, once.
        cache_ttl_seconds: after which Redis forgets a value.
        log_level: of the JSON logs on stderr; a request is logged at "debug".
    """

    model_config = SettingsConfigDict(env_prefix="TTGPT_", frozen=True, extra="forbid")

    models: Annotated[tuple[Path, ...], NoDecode] = Field(min_length=1)
    default_model: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    threads: int = Field(default_factory=compute_threads, ge=1, le=1024)
    max_batch: int = Field(8, ge=1, le=1024)
    max_waiting: int = Field(128, ge=0, le=65536)
    max_tokens: int = Field(131072, ge=1, le=1 << 30)
    request_seconds: float = Field(600, gt=0, le=86400)
    heartbeat_seconds: float = Field(60, gt=0, le=86400)
    api_key_hashes: Annotated[tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...], NoDecode] = ()
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    prefill_chunk: int = Field(128, ge=1, le=65536)
    reproducible: bool = True
    kv_dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    kv_bytes: int | None = Field(None, ge=1)
    max_body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30)
    drain_seconds: int = Field(120, ge=0, le=86400)
    cache: Literal["auto", "always", "off"] = "auto"
    cache_bytes: int = Field(64 << 20, ge=0, le=1 << 40)
    cache_answers: bool = False
    redis_url: Annotated[str, Field(pattern="^(redis|rediss|unix)://")] | None = Field(None, repr=False)
    cache_timeout_ms: int = Field(50, ge=1, le=10_000)
    cache_ttl_seconds: int = Field(86400, ge=1, le=10 * 365 * 86400)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("cache_answers")
    @classmethod
    def _only_sure_answers(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("cache") == "off":
            raise ValueError("needs TTGPT_CACHE auto or always")
        if value and not info.data.get("reproducible", True):
            raise ValueError("needs TTGPT_REPRODUCIBLE, without which an answer depends on the others in the batch")
        return value

    @field_validator("redis_url")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        if value is not None:
            place = urlsplit(value)
            if not (place.path if place.scheme == "unix" else place.hostname) or (place.port or 1) < 1:
                raise ValueError("must be like redis://host:6379/0 or unix:///path")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.split(os.pathsep) if isinstance(value, str) else value

    @field_validator("api_key_hashes", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
