"""How far a changed model is from the dense one, measured on a little text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.formats import Dense, Format
from compressor.gpt2 import GPT2
from compressor.runtime.evaluate import HEAD_ROWS

MEASURED_TOKENS = 512
DRAWN_TOKENS = 64  # of the vocabulary, whose logits stand for all
UNUSABLE = 1e9  # nats per token, more than any model that can be served loses


@dataclass(frozen=True)
class Reference:
    """What the dense model makes of the measured text, so that a changed one is run from its first change on.

    Attributes:
        dense: the model.
        ids: tokens [B, T].
        states: what every half of a layer reads, and what the last LayerNorm does [2 L + 1] of [B, T, D].
        drawn: tokens that stand for the next one's distribution p [B T, DRAWN_TOKENS]: its quantiles.
        logits: of these [B T, DRAWN_TOKENS].
    """

    dense: GPT2
    ids: Tensor
    states: list[Tensor]
    drawn: Tensor
    logits: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, dense: GPT2, ids: Tensor) -> "Reference":
        """Return that of the dense model and tokens [rows, T], of which the first MEASURED_TOKENS are used."""
        ids = ids[: max(1, MEASURED_TOKENS // ids.shape[1]), :MEASURED_TOKENS]
        states = [dense.embedded(ids)]
        for half in dense.halves():
            states.append(half(states[-1]))
        quantiles = (torch.arange(DRAWN_TOKENS) + 0.5) / DRAWN_TOKENS
        drawn, logits = [], []
        for hidden in dense.ln_f(states[-1]).flatten(0, 1).split(HEAD_ROWS):
            found = dense.logits(hidden)  # [rows, V]
            chances = found.softmax(-1).cumsum(-1)
            drawn.append(torch.searchsorted(chances, chances[:, -1:] * quantiles))
            logits.append(found.gather(1, drawn[-1]))
        return cls(dense, ids, states, torch.cat(drawn), torch.cat(logits))

    @torch.inference_mode()
    def kl(self, changed: Mapping[str, Format]) -> float:
        """Return the mean KL divergence of the dense model with some matrices changed, nats per token.

        KL(p || q) = log E_p exp(d) - E_p d, where d is by how much a token's logit has changed. It is UNUSABLE where
        the model's logits are not finite.
        """
        tables = {name: Dense.of(changed[name].dense(), "fp32") for name in changed if not name.startswith("h.")}
        model = self.dense.with_matrices({**changed, **tables})  # linears are decoded as they are multiplied
        first = min(_first_half(name, len(self.states) - 1) for name in changed)
        x = model.embedded(self.ids) if changed.keys() & {"wte", "wpe"} else self.states[first]
        for half in model.halves()[first:]:
            x = half(x)
        hidden = model.ln_f(x).flatten(0, 1).unsqueeze(-1)  # [B T, D, 1]
        rows = model.head.rows(self.drawn)  # [B T, DRAWN_TOKENS, D]
        change = ((rows @ hidden).squeeze(-1) - self.logits).double()
        each = change.logsumexp(-1) - math.log(DRAWN_TOKENS) - change.mean(-1)
        kl = float(each.mean())
        return max(kl, 0.0) if math.isfinite(kl) else UNUSABLE


def _first_half(name: str, halves: int) -> int:
    """Return the number of the half of a layer that multiplies by a matrix; `halves` for the head."""
    if name == "lm_head":
        return halves
    if not name.startswith("h."):
        return 0
    _, layer, part, _ = name.split(".")
    return 2 * int(layer) + (part == "mlp")
