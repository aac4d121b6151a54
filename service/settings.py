"""All settings of the service; read once, in `service.server`, and handed down."""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.chat_template import ChatTemplate
from service.process.threads import compute_threads
from service.redis_url import client_of

PREFIX = "TTGPT_"
SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_.+)?)")


class Settings(BaseSettings):
    """What an operator can choose; every field is the environment variable TTGPT_<FIELD>.

    Attributes:
        models: artefact folders, in the environment separated like PATH; served under the folder's name.
        default_model: name of the model that serves requests which name none; the first one by default.
        draft_model: name of a served model, or folder of another artefact, that proposes tokens to the served models of
            its tokenizer, see `service.engine.speculation`; none by default.
        draft_tokens: the most that it proposes at a time.
        chat_template: file with one turn of a transcript, as which the models read chats; none by default.
        host, port: where to listen; port 0 takes any free one, "::" both families of addresses.
        uds: path of a unix socket to listen on instead.
        root_path: prefix under which a proxy shows the service, whether or not the proxy cuts it off.
        threads: of one matrix product; by default the cores of the cgroup's quota and cpuset.
        max_batch: requests of one model that are worked on at the same time, if the KV cache has room for their texts.
        max_waiting: requests that may wait for that; more are refused with 429.
        max_tokens: of the prompts and longest answers of all accepted requests; more are refused with 429.
        request_seconds: how long a request may take before it is given up with 504.
        heartbeat_seconds: how long one round of the engine may last before /livez says that it hangs.
        api_key_hashes: SHA-256 of the keys that clients may use, in hexadecimal, in the environment separated by
            commas; without any, no key is asked for.
        cors_origins: web pages that may call the service, in the environment separated by commas; "*" for all.
        prefill_chunk: tokens of prompts that are read, or scored, in one step, which all running requests wait for.
        kv_dtype: of the KV cache.
        kv_bytes: what the KV caches of all models share; by default room for eight texts of each model as long as its
            context, or half the memory limit if that is less.
        prefix_cache: keep what was read, and do not read it again for a text that begins the same.
        max_body_bytes: longest request body.
        bodies_bytes: of all request bodies that are received or worked on, the first 8 KiB of each not counted; more
            are refused with 503, except one that is alone.
        max_connections: open ones; beyond that, and near the limit of descriptors, the one that has waited longest
            for its client is closed.
        head_seconds: from the first byte of a request, or from the connection, to the end of its head.
        body_seconds: from there to the end of its body; and how long a client may not read its answer.
        keep_alive_seconds: how long a connection may be idle between requests.
        drain_seconds: how long a stopping server waits for the requests it has accepted.
        cache: of contracted cores: "auto" bypasses a tier where contracting is faster, "always" never does; or "off".
        cache_bytes: what it may occupy in this process.
        cache_answers: remember whole answers, too, if they are greedy or seeded; they stand in Redis as plain text.
        redis_url: of the tier that replicas share; none by default.
        cache_timeout_ms: how long a request may wait for Redis, once.
        cache_ttl_seconds: after which Redis forgets a value.
        log_level: of the JSON logs on stderr; a request is logged at "debug".
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    models: Annotated[tuple[Path, ...], NoDecode] = Field(min_length=1)
    default_model: str | None = None
    draft_model: Path | None = None
    draft_tokens: int = Field(5, ge=1, le=8)
    chat_template: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    uds: Path | None = None
    root_path: Annotated[str, Field(pattern=r"^((/[A-Za-z0-9._~-]+)+)?$")] = ""
    threads: int = Field(default_factory=compute_threads, ge=1, le=1024)
    max_batch: int = Field(64, ge=1, le=1024)
    max_waiting: int = Field(128, ge=0, le=65536)
    max_tokens: int = Field(131072, ge=1, le=1 << 30)
    request_seconds: float = Field(600, gt=0, le=86400)
    heartbeat_seconds: float = Field(60, gt=0, le=86400)
    api_key_hashes: Annotated[tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...], NoDecode] = ()
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    prefill_chunk: int = Field(128, ge=1, le=65536)
    kv_dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    kv_bytes: int | None = Field(None, ge=1)
    prefix_cache: bool = True
    max_body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30)
    bodies_bytes: int = Field(16 << 20, ge=0, le=1 << 40)
    max_connections: int = Field(1024, ge=1, le=1 << 20)
    head_seconds: float = Field(10, gt=0, le=86400)
    body_seconds: float = Field(30, gt=0, le=86400)
    keep_alive_seconds: float = Field(75, gt=0, le=86400)
    drain_seconds: int = Field(120, ge=0, le=86400)
    cache: Literal["auto", "always", "off"] = "auto"
    cache_bytes: int = Field(64 << 20, ge=0, le=1 << 40)
    cache_answers: bool = False
    redis_url: str | None = Field(None, repr=False)
    cache_timeout_ms: int = Field(50, ge=1, le=10_000)
    cache_ttl_seconds: int = Field(86400, ge=1, le=10 * 365 * 86400)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("cache_answers")
    @classmethod
    def _only_sure_answers(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("cache") == "off":
            raise ValueError("needs TTGPT_CACHE auto or always")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_usable(cls, value: str | None) -> str | None:
        if value is not None:
            client_of(value, 1)
        return value

    @field_validator("chat_template")
    @classmethod
    def _is_template(cls, value: Path | None) -> Path | None:
        if value is not None:
            ChatTemplate.read(value)
        return value

    @field_validator("root_path")
    @classmethod
    def _no_route(cls, value: str) -> str:
        if f"{value}/".startswith("/v1/"):
            raise ValueError("must not begin with /v1, where routes are")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.split(os.pathsep) if isinstance(value, str) else value

    @field_validator("api_key_hashes", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def check_names(environment: Iterable[str]) -> None:
    """Refuse variables that look like settings and are none, since what they were meant to set is not set.

    Raises:
        ValueError: naming the first one, and the setting that is most like it.
    """
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    unknown = sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
    if not unknown:
        return
    name = unknown[0]
    hint = "see the settings in service/README.md"
    if nearest := get_close_matches(name.upper(), known, n=1):
        hint = f"did you mean {nearest[0]}?"
    if any(SERVICE_LINK.fullmatch(other.upper().removeprefix(PREFIX)) for other in unknown):
        hint = "if Kubernetes has set it for a Service, set enableServiceLinks: false in the pod"
    raise ValueError(f"{name}: is not a setting; {hint}")
