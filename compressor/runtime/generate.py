"""Plain batched generation, for the command line, golden values and text sampled from a model."""

import torch
from torch import Tensor

from compressor.errors import check_range
from compressor.gpt2 import GPT2
from compressor.progress import Progress, silent
from compressor.runtime.finite import check_logits


@torch.inference_mode()
def generate(
    model: GPT2,
    prompts: Tensor,
    new_tokens: int,
    *,
    temperature: float,
    seed: int = 0,
    progress: Progress = silent,
) -> Tensor:
    """Return the prompts, each followed by `new_tokens` generated ones: [B, T + new_tokens].

    Args:
        model: a prepared model.
        prompts: tokens [B, T], T >= 1.
        new_tokens: how many to add to each row.
        temperature: 0 takes the likeliest token; above, tokens are sampled.
        seed: of the sampling.
        progress: progress callback, once per token.

    Raises:
        ValueError: if the result does not fit the context, a number is out of range, or logits are not finite.
    """
    batch, length = prompts.shape
    check_range("max_new_tokens", new_tokens, 0, model.config.n_positions - length)
    check_range("temperature", temperature, 0, 100)
    check_range("seed", seed, 0, 2**63 - 1)
    if not new_tokens:
        return prompts
    random = torch.Generator().manual_seed(seed)
    cache = model.new_cache(batch, length + new_tokens)
    ids, new = prompts, prompts
    for _ in progress(range(new_tokens), label="Generating", total=new_tokens):
        logits = model.logits(model(new, cache)[:, -1])  # [B, V]
        if not torch.isfinite(logits).all():
            check_logits(model, ids)
            raise ValueError("model: its logits are not finite")
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)  # [B, 1]
        else:
            new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=random)
        ids = torch.cat([ids, new], dim=1)
    return ids
