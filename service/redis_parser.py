"""Reading Redis' answers, no larger ones than our questions have.

hiredis makes room for as many elements as an answer says it has, before any has come: 13 bytes would occupy 16 GB.
"""

import re
from typing import Any

from redis._parsers import _AsyncHiredisParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

MOST_BYTES = 32 << 20  # of one answer; 2,048 rows of 4,096 numbers are as many
# The head of a list, map, set or push of 100,000 elements or more; in the numbers of a row by chance once in 10^11.
HUGE = re.compile(rb"(?:\A|\n)[*%~>|]\d{6}")
HEAD_BYTES = 7  # of such a head may have come with the chunk before


class BoundedParser(_AsyncHiredisParser):
    """redis-py's parser, which gives up on what is too large."""

    def __init__(self, socket_read_size: int) -> None:
        super().__init__(socket_read_size=socket_read_size)
        self._left_bytes = MOST_BYTES
        self._tail = b""

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return the next answer; raises InvalidResponse if it is larger than any that is asked for."""
        self._left_bytes, self._tail = MOST_BYTES, b""
        return await super().read_response(*args, **kwargs)

    async def read_from_socket(self) -> bool:
        """Take what has come; raises InvalidResponse like `read_response`."""
        stream: Any = self._stream
        reader: Any = self._reader
        chunk = await stream.read(self._read_size)
        if not chunk:
            raise RedisConnectionError("Redis closed the connection")
        self._left_bytes -= len(chunk)
        seen = self._tail + chunk
        if self._left_bytes < 0 or HUGE.search(seen):
            raise InvalidResponse("the answer is larger than any that is asked for")
        self._tail = seen[-HEAD_BYTES:]
        reader.feed(chunk)
        return True
