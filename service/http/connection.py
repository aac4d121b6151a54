"""One client's connection: every phase has a deadline, everything it holds a bound.

    head -> body -> answer -> idle -> head ...

What cannot be read is refused once, after the answers that are under way, and nothing behind it is read.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import MalformedRequestError, ServiceError, SlowRequestError
from service.http.waiting_room import WaitingRoom
from service.settings import Settings

LONGEST_HEAD_BYTES = 40 << 10  # of the request line and all headers; of a trailer, too
MOST_HEADERS = 100
MOST_PIPELINED = 16
PIECE_BYTES = 1 << 14  # that are parsed before the bounds are looked at
GRACE_SECONDS = 5.0  # for the application to word what has happened


class Connection(HttpToolsProtocol):
    """Bounds what one client can hold, and reads what other servers read.

    An upgrade is never made, so a request that offers one is a request like any other: the parser, which ends such a
    message at its head, is given the head again without the offer.

    Attributes:
        settings: with the deadlines.
        room: of all connections.
    """

    settings: ClassVar[Settings]
    room: ClassVar[WaitingRoom]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._running: RequestResponseCycle | None = None  # the request that is being answered, or was last
        self._idle = False  # since the last answer
        self._in_head = False
        self._receiving = False  # the body of the latest request
        self._ending = False  # nothing more is read
        self._silent_bytes = 0  # since the parser has last told anything but headers
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    @property
    def _answering(self) -> bool:
        running = self._running
        return running is not None and not running.response_complete and not running.disconnected

    @property
    def _accepted(self) -> bool:
        """Whether a request that has come whole is still to be answered."""
        return self._answering and not (self._receiving and self.cycle is self._running)

    # What the transport tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(self.settings.head_seconds, self._head_is_late)
        self.room.enter(self)
        self.room.make_place(len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        self.room.leave(self)
        self._disarm()
        self._disarm_stall()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._idle:
            self._idle = False
            self._arm(self.settings.head_seconds, self._head_is_late)
        for start in range(0, len(data), PIECE_BYTES):
            if self._ending or self.transport.is_closing():
                return
            self._parse(data[start : start + PIECE_BYTES])

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.settings.body_seconds, self.transport.abort)
        self.room.enter(self)

    def resume_writing(self) -> None:
        self._disarm_stall()
        if self._accepted:
            self.room.leave(self)
        super().resume_writing()

    def abort(self) -> None:
        """Close the connection now, whatever it is at."""
        self.transport.abort()

    # What the parser tells.

    def _parse(self, data: bytes) -> None:
        self._silent_bytes += len(data)
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError as error:
            reason = error.__context__ if isinstance(error.__context__, MalformedRequestError) else None
            self._refuse(reason or MalformedRequestError("the request is not HTTP/1.1"))
            return
        if self._silent_bytes > LONGEST_HEAD_BYTES:
            self._refuse(MalformedRequestError(f"the head must be at most {LONGEST_HEAD_BYTES} bytes long"))

    def _feed(self, data: bytes) -> bytes:
        """Return what is still to be parsed: a head that offered an upgrade, without the offer, and all behind it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            again = self._head_without_upgrade() + data[upgrade.args[0] :]
            self.parser = httptools.HttpRequestParser(self)  # the old one reads no more if the head said close
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            return again
        return b""

    def _head_without_upgrade(self) -> bytes:
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        kept = (b"%s: %s" % header for header in self.headers if header[0] != b"upgrade")
        return b"\r\n".join([line, *kept, b"", b""])

    def on_message_begin(self) -> None:
        self._in_head, self._silent_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer must not become a header
        if len(self.headers) >= MOST_HEADERS:
            raise MalformedRequestError(f"the head must have at most {MOST_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._check_head()
        if self.parser.should_upgrade():
            return  # it will come again
        if self._answering and len(self.pipeline) >= MOST_PIPELINED:
            raise MalformedRequestError(f"at most {MOST_PIPELINED} requests may be sent ahead")
        self._receiving = True
        super().on_headers_complete()

    def _check_head(self) -> None:
        size_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size_bytes > LONGEST_HEAD_BYTES:
            raise MalformedRequestError(f"the head must be at most {LONGEST_HEAD_BYTES} bytes long")
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or self.parser.get_method() == b"CONNECT":
            raise MalformedRequestError("the request is not HTTP/1.1")
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or version == "1.0"):
            raise MalformedRequestError("transfer-encoding: must be chunked, in HTTP/1.1")

    def on_chunk_header(self) -> None:
        self._silent_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)
        if self.cycle is not self._running and len(self.cycle.body) > HIGH_WATER_LIMIT:
            raise MalformedRequestError("a body this long must not be sent ahead")

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._receiving = False
        super().on_message_complete()
        if self.cycle is self._running:
            self._body_is_whole()

    # How requests go on.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        if cycle.more_body:
            self._arm(self.settings.body_seconds, self._body_is_late)
        else:
            self._body_is_whole()
        super()._start_asgi_task(cycle, app)

    def _body_is_whole(self) -> None:
        if self._answering:
            self.room.leave(self)
            self._arm(self.settings.request_seconds + GRACE_SECONDS, self.transport.abort)
        else:
            self._be_idle()  # it was refused by its head

    def on_response_complete(self) -> None:
        answered = self._running
        super().on_response_complete()
        self._unset_keepalive_if_required()  # there is one deadline at a time
        if self.transport.is_closing():
            self._close()
        elif self._running is answered:
            if self._ending or (self._receiving and self.expect_100_continue):
                self._close()  # an expected body may never come
            elif not self._receiving:
                self._be_idle()

    def _be_idle(self) -> None:
        self.room.enter(self)
        self._idle = not self._in_head
        if self._idle:
            self._arm(self.settings.keep_alive_seconds, self._close)
        else:
            self._arm(self.settings.head_seconds, self._head_is_late)

    def shutdown(self) -> None:
        """Close the connection as soon as the requests that have come whole, if any, are answered."""
        self._ending = True
        if not self._accepted or self._running is None:
            self._close()
            return
        if self._receiving:
            self._receiving = False
            self.pipeline.popleft()  # the latest, which has not come whole
        last = self.pipeline[0][0] if self.pipeline else self._running
        last.keep_alive = False

    # How connections end.

    def _refuse(self, error: ServiceError) -> None:
        """Answer with an error, unless the request has an answer, and end the connection."""
        if self._accepted:
            self.shutdown()
            return
        self._ending = True
        answered = self._receiving and self._running is not None and self._running.response_started
        if not answered and not self.transport.is_closing():
            body = json.dumps(error.body).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self._close()

    def _close(self) -> None:
        """Send what is written and close; what is not read in time is lost."""
        if self._answering and self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        self.transport.close()
        self._arm(self.settings.body_seconds, self.transport.abort)

    def _head_is_late(self) -> None:
        if self._in_head:
            self._refuse(SlowRequestError("head", self.settings.head_seconds))
        else:
            self._close()  # nothing was asked, so nothing is answered

    def _body_is_late(self) -> None:
        if self._answering:  # the application has the same deadline, and answers
            self._arm(GRACE_SECONDS, self.transport.abort)
        else:
            self._close()

    def _arm(self, seconds: float, act: Callable[[], None]) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, act)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _disarm_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def connections_with(settings: Settings) -> type[Connection]:
    """Return the class of the connections of one server."""
    room = WaitingRoom(settings.max_connections)
    return type("Connection", (Connection,), {"settings": settings, "room": room})
