"""From TTGPT_REDIS_URL to a client. What redis-py or TLS say about the URL is said when the service starts.

Only parameters that change who is asked, and as whom, may stand in the URL: the others either break what the cache
relies on (`decode_responses`, `protocol`, `encoding`), are settings of ours (`socket_timeout`) or mean nothing.
"""

from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, urlsplit

if TYPE_CHECKING:
    from redis.asyncio import Redis

SHAPE = "must be like redis://user:password@host:6379/0, rediss://host or unix:///path?db=0"
ENCODE = "what is special in a user or password must be percent-encoded, such as @ as %40"
EVERYWHERE = ("db", "username", "password", "client_name", "max_connections", "health_check_interval")
OVER_TCP = (*EVERYWHERE, "socket_keepalive")
OVER_TLS: tuple[str, ...] = (*OVER_TCP, "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile")
OVER_TLS += ("ssl_check_hostname", "ssl_ciphers", "ssl_exclude_verify_flags", "ssl_include_verify_flags")
OVER_TLS += ("ssl_keyfile", "ssl_min_version", "ssl_password")
PARAMETERS = {"redis": OVER_TCP, "rediss": OVER_TLS, "unix": EVERYWHERE}


def client_of(url: str, timeout_seconds: float) -> "Redis":
    """Return a client of the Redis at `url`, which is not connected to yet.

    Raises:
        ValueError: if the URL is illegal, or its certificates cannot be used. No message has the password in it.
    """
    from redis.asyncio import Redis, SSLConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    from service.redis_parser import BoundedParser

    _check(url)
    try:
        client: Redis = Redis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            protocol=2,
            parser_class=BoundedParser,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
        )
        connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        if isinstance(connection, SSLConnection):
            connection.ssl_context.get()
    except Exception as error:
        raise ValueError(f"the Redis client does not take it: {error}") from error
    return client


def _check(url: str) -> None:
    """Refuse what redis-py would not notice, pass over in silence or repeat with the password."""
    parts = _split(url)
    if any("@" in part for part in (parts.query, parts.fragment, "" if parts.scheme == "unix" else parts.path)):
        raise ValueError(ENCODE)
    if parts.fragment:
        raise ValueError(SHAPE)
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not (database.isascii() and database.isdigit()):
        raise ValueError(f"the path must be the number of a database; {SHAPE}")
    legal = PARAMETERS[parts.scheme]
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in legal:
            raise ValueError(f"{name!r} is no parameter for {parts.scheme}://; there are {', '.join(legal)}")
        if not value:
            raise ValueError(f"{name!r} must not be empty")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = 6379 if parts.port is None else parts.port
    except ValueError as error:  # whose text may be a piece of the password
        raise ValueError(f"{SHAPE}; {ENCODE}") from error
    if parts.scheme not in PARAMETERS or not (parts.path if parts.scheme == "unix" else parts.hostname) or port < 1:
        raise ValueError(SHAPE)
    return parts
