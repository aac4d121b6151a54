"""What every service is asked."""

import json
import secrets
from dataclasses import dataclass

from compressor.errors import check_range

REQUESTS = 2  # that each client sends, one after the other
WORDS = ("and", "as", "at", "boat", "day", "he", "in", "looked", "man", "of", "old", "on", "sea", "the", "was", "with")
MOST_CLIENTS, MOST_TOKENS, MOST_ROUNDS = 512, 1 << 16, 100


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is asked for.

    Attributes:
        clients: at the same time, one figure for each.
        prompt_tokens, new_tokens: of every request.
        rounds: in which every service takes its turn; their medians count.

    Raises:
        ValueError: naming the field and its legal range.
    """

    clients: tuple[int, ...] = (1, 8, 32)
    prompt_tokens: int = 32
    new_tokens: int = 64
    rounds: int = 3

    def __post_init__(self) -> None:
        if not self.clients or len(set(self.clients)) < len(self.clients):
            raise ValueError("clients must be one or several different numbers, such as 1,8,32")
        for count in self.clients:
            check_range("clients", count, 1, MOST_CLIENTS)
        check_range("prompt_tokens", self.prompt_tokens, 1, MOST_TOKENS)
        check_range("new_tokens", self.new_tokens, 2, MOST_TOKENS)
        check_range("rounds", self.rounds, 1, MOST_ROUNDS)

    @property
    def usual(self) -> int:
        """The number of clients whose latencies are shown: the middle one."""
        return sorted(self.clients)[len(self.clients) // 2]

    def requests(self, model: str, clients: int) -> list[list[bytes]]:
        """Return the requests of each client to a model.

        No two texts are the same, so that nothing of them is remembered. They have a word or more for every token, of
        which the service reads the last `prompt_tokens`.
        """
        return [[self._request(model) for _ in range(REQUESTS)] for _ in range(clients)]

    def _request(self, model: str) -> bytes:
        text = " ".join(secrets.choice(WORDS) for _ in range(self.prompt_tokens))
        length = {"truncate": self.prompt_tokens, "max_new_tokens": self.new_tokens, "ignore_eos": True}
        return json.dumps({"inputs": text, "model": model, "parameters": length}).encode()
