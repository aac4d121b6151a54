"""From tokens to text, one token at a time.

Laws: the released pieces, joined, are the text of all bytes up to the first stop string, however the
bytes are cut into tokens. A piece never ends inside a character, and never holds a part of a stop string.
"""

import codecs
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """What every token stands for.

    Attributes:
        bytes: of every token [V]; special and unused tokens have none.
        special: ids of the special tokens, such as <|endoftext|>.
        longest_bytes: upper bound of the text that one token stands for, in bytes of UTF-8.
    """

    bytes: "Joined"
    special: frozenset[int]
    longest_bytes: int


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each letter of the byte-level alphabet stands for.

    Printable bytes stand for themselves, the others are moved behind U+0100, in order.
    Reference: GPT-2's encoder.py, bytes_to_unicode.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(moved)}


class _Letters(dict[int, str]):
    """For str.translate, which drops what is None."""

    def __missing__(self, key: int) -> None:
        return None


class Joined:
    """Strings of bytes, one behind another: as objects of their own, each would take 40 bytes more."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        data, ends = bytearray(), array("I", [0])
        for piece in pieces:
            data += piece
            ends.append(len(data))
        self._data, self._ends = bytes(data), ends

    def __getitem__(self, index: int) -> bytes:
        return self._data[self._ends[index] : self._ends[index + 1]]

    def __len__(self) -> int:
        return len(self._ends) - 1


@lru_cache(maxsize=1)  # models that share a tokenizer come one after the other
def vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Return the bytes of tokens 0 .. size - 1 of a byte-level BPE."""
    letters = _Letters({ord(letter): chr(byte) for letter, byte in byte_alphabet().items()})
    added = tokenizer.get_added_tokens_decoder()
    special = frozenset(token_id for token_id, token in added.items() if token.special)
    longest = 1

    def pieces() -> Iterator[bytes]:
        nonlocal longest
        for token_id in range(size):
            token = tokenizer.id_to_token(token_id) or ""
            longest = max(longest, len(token.encode()))
            if token_id in added:
                yield b"" if token_id in special else token.encode()
            else:
                yield token.translate(letters).encode("latin-1")

    return Vocabulary(Joined(pieces()), special, longest)


class TextStream:
    """Decodes bytes into text and ends it before the first stop string.

    The first stop string is the one that is complete first; of several that end together, the longest.

    Attributes:
        stopped: whether a stop string was met.
    """

    def __init__(self, stops: Sequence[str], unstopped: int = 0) -> None:
        """Have seen nothing yet.

        Args:
            stops: strings that end the text.
            unstopped: of so many tokens at first; a stop string counts only if it is complete behind them.
        """
        self.stopped = False
        self._stops = sorted(stops)
        self._longest = max(map(len, stops), default=1)
        self._unstopped = unstopped if stops else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._past = 0  # characters of what is held, from the first on, in which no stop string may end

    def push(self, data: bytes) -> str:
        """Take the bytes of one token and return the text that is safe to show by now."""
        text = self._decoder.decode(data)
        if self._unstopped:
            self._pass(text)
            self._unstopped -= 1
        return self._release(text, final=False)

    def finish(self) -> str:
        """Return what was still held back."""
        text = self._decoder.decode(b"", final=True)
        if self._unstopped:
            self._pass(text)
        return self._release(text, final=True)

    def _pass(self, text: str) -> None:
        """Let no stop string end in the next text."""
        self._past = len(self._held) + len(text)

    def _release(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        pending = self._held + text
        past = self._past
        matches = [
            (at + len(stop), at)
            for stop in self._stops
            if (at := pending.find(stop, max(0, past + 1 - len(stop)) if past else 0)) >= 0
        ]
        if matches:
            self.stopped = True
            return pending[: min(matches)[1]]
        cut = len(pending) if final else len(pending) - self._held_back(pending)
        self._held = pending[cut:]
        self._past = max(0, past - cut) if past else 0
        return pending[:cut]

    def _held_back(self, pending: str) -> int:
        """Return the length of the longest end of `pending` that a stop string begins with."""
        for length in range(min(self._longest - 1, len(pending)), 0, -1):
            end = pending[-length:]
            at = bisect_left(self._stops, end)  # of those in order, the ones that begin with it follow each other
            if at < len(self._stops) and self._stops[at].startswith(end):
                return length
        return 0
