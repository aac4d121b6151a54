"""How much is measured."""

from dataclasses import asdict, dataclass
from typing import Any

from compressor.artifact.gpt2_config import GPT2Config

SEED = 4
# GPT-2 "small": https://huggingface.co/gpt2, 124M parameters. Token 0 ends a text, as in the embedded tokenizer.
GPT2_124M = GPT2Config(
    vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12, n_inner=3072, eos_token_id=0
)
PROMPT = "The old man looked at the sea, and the sea was as old as he"  # as long as `prompt_tokens`


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one run measures.

    Attributes:
        name: of the plan.
        config: the shape of the model, whose weights are random.
        rounds: how often every engine takes its turn.
        batches: rows decoded at the same time.
        prompt_tokens, new_tokens: of every row, in process and through HTTP.
        prefills: lengths of the prompts that are read.
        clients: connections at the same time, through HTTP.
        requests: that each client sends, one after the other.
        http_rounds: how often the service takes its turn.
        busy_batches: rows decoded at the same time beside a busy loop, in one round.
        arriving_tokens: of the prompt that arrives beside streams.
        arriving_seconds: from their beginning until it does.
        bandwidth_bytes: of the buffer that is read.
        limit_seconds: that one figure may take; one that takes longer is reported as too slow.
        seconds: that one process may take.
    """

    name: str
    config: GPT2Config = GPT2_124M
    rounds: int
    batches: tuple[int, ...]
    prompt_tokens: int = 16
    new_tokens: int
    prefills: tuple[int, ...]
    clients: tuple[int, ...]
    requests: int
    http_rounds: int
    busy_batches: tuple[int, ...] = (1, 8)
    arriving_tokens: int = 900
    arriving_seconds: float = 1.5
    bandwidth_bytes: int = 1 << 30
    limit_seconds: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return all of it for a file."""
        return asdict(self)


FULL = Plan(
    name="full",
    rounds=3,
    batches=(1, 4, 8, 16),
    new_tokens=64,
    prefills=(128, 512),
    clients=(1, 8, 32),
    requests=3,
    http_rounds=2,
    limit_seconds=20,
    seconds=240,
)
QUICK = Plan(
    name="quick",
    rounds=1,
    batches=(1, 8),
    new_tokens=16,
    prefills=(128,),
    clients=(1, 8),
    requests=1,
    http_rounds=1,
    limit_seconds=10,
    seconds=90,
)
