"""Whether a model computes anything at all: values that are finite can still make logits that are not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compressor.formats import Dense
from compressor.gpt2 import GPT2, LayerNorm, Linear

LARGEST_ROWS = 8  # of the token table, whose tokens are the likeliest to overflow


@torch.inference_mode()
def check_logits(model: GPT2, ids: Tensor | None = None) -> None:
    """Refuse a model whose logits are not finite.

    Args:
        model: as it was made.
        ids: tokens [B, T]; by default those with the largest vectors.

    Raises:
        ValueError: naming the first matrix or vector that gives something else.
    """
    for name, form in model.matrices().items():
        if ids is None and not torch.isfinite(form.dense()).all():
            raise ValueError(f"{name}: must be finite")
    ids = _largest(model) if ids is None else ids
    if not torch.isfinite(model.logits(model(ids))).all():
        raise ValueError(f"{_culprit(model, ids)} is not finite: the weights are too large for fp32, or wrong")


def _largest(model: GPT2) -> Tensor:
    """Return the tokens with the largest vectors [1, T]."""
    rows = model.wte.dense()
    sizes = rows.double().norm(dim=1)
    ids: Tensor = sizes.topk(min(LARGEST_ROWS, len(sizes), model.config.n_positions)).indices
    return ids.unsqueeze(0)


def _culprit(model: GPT2, ids: Tensor) -> str:
    """Return the first of what a model computes from tokens [B, T] that is not finite, all matrices in fp32."""
    plain = model.with_matrices({name: Dense.of(form.dense(), "fp32") for name, form in model.matrices().items()})
    found: list[str] = []
    parts = {name: part for name, part in plain.named_modules() if isinstance(part, Linear | LayerNorm)}
    hooks = [part.register_forward_hook(_noting(name, found)) for name, part in parts.items()]
    try:
        plain(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "lm_head: the product" if model.lm_head is not None else "wte: the product as a head"


def _noting(name: str, found: list[str]) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_module: nn.Module, arguments: Any, output: Tensor) -> None:
        if not torch.isfinite(arguments[0]).all():
            found.append(f"{name}: what it is given")
        elif not torch.isfinite(output).all():
            found.append(f"{name}: the product")

    return hook
