"""A bound for what comes before a request's body, which uvicorn's fast parser would collect without end."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_HEAD_BYTES = 1 << 16  # of the request line and all headers


class BoundedHead(HttpToolsProtocol):
    """Answers 400 to a request whose head is too long, and closes the connection."""

    _in_head = False
    _pending_bytes = 0  # of a head that is not complete yet, but for the piece in which it began

    def on_message_begin(self) -> None:
        self._in_head, self._pending_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        size_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size_bytes > LONGEST_HEAD_BYTES:
            raise ValueError  # becomes the parser's error, which is answered by 400
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        began_in_head = self._in_head
        super().data_received(data)
        if not (began_in_head and self._in_head) or self.transport.is_closing():
            return
        self._pending_bytes += len(data)
        if self._pending_bytes > LONGEST_HEAD_BYTES:
            self.send_400_response("The head of the request is too long.")
