"""What an error of a matrix costs: an estimate of the second order, of all matrices from one backward pass.

Let an error dW change an output y = W x by dW x. The divergence of the model's distribution from what it was is then
near E (g . dW x)^2 / 2, where g is the gradient at y of the log-likelihood of a token that is drawn from that very
distribution: E g g^T is the Fisher information. Taking rows to err independently of each other, and of g,

    KL = 1/2 sum_r E g_r^2  dW_r M dW_r^T        M = E x x^T

Reference: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv
1503.05671, sections 2 and 3; of E g g^T we keep the diagonal, so that an error is known from some of its rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.gpt2 import GPT2, Linear
from compressor.methods import METHODS
from compressor.methods.base import Statistics
from compressor.recipes.calibrate import HEAD_ROWS, times_read, uncertainties
from compressor.recipes.divergence import UNUSABLE
from compressor.recipes.pieces import Choice, Piece, candidates, size_bytes
from compressor.runtime._decoder import LANES

SENSED_TOKENS = 2048  # that are run backward
SAMPLED_ROWS = 256  # of a piece, on which every candidate is tried
LEAST_KL = 1e-12  # so that a measurement can correct it


@dataclass(frozen=True, eq=False)
class Loss:
    """KL = 1/2 sum_r weights[r] dW_r moment dW_r^T of an error dW [out, in].

    Attributes:
        weights: of the rows [out].
        moment: of the columns [in, in].
    """

    weights: Tensor
    moment: Tensor

    def of_rows(self, rows: slice) -> "Loss":
        """Return that of some rows alone."""
        return Loss(self.weights[rows].clone(), self.moment)

    def of(self, error: Tensor) -> float:
        """Return the KL of an error [out, in]."""
        return float((error @ self.moment * error).sum(1) @ self.weights) / 2

    def sampled(self, weight: Tensor, rows: Tensor) -> "Loss":
        """Return a loss of errors of some rows [n] of `weight` [out, in], which stand for those of all."""
        sizes = self.weights * weight.square().sum(1)
        known = sizes[rows].sum()
        factor = torch.where(known > 0, sizes.sum() / known, len(weight) / len(rows))
        return Loss(self.weights[rows] * factor, self.moment)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradients:
    """What a backward pass says about every matrix.

    Attributes:
        outputs: mean square of the gradient at every linear's outputs [out].
        embedded: mean of g g^T at what the first layer reads [D, D].
        hidden: mean of h h^T of the last hidden states [D, D].
        read: share of the tokens that are this one [V].
        multiplied: mean of p (1 - p) of every token's probability [V].
        context: positions that were read.
        tied: whether the table that is read is also what hidden states are multiplied by.
    """

    outputs: Mapping[str, Tensor]
    embedded: Tensor
    hidden: Tensor
    read: Tensor
    multiplied: Tensor
    context: int
    tied: bool

    def losses(self, name: str, statistics: Statistics, rows: int) -> list[Loss]:
        """Return the losses that add up for the matrix called `name`, which has so many rows."""
        if name == "wpe":
            return [Loss((torch.arange(rows) < self.context) / self.context, self.embedded)]
        reading, multiplying = Loss(self.read, self.embedded), Loss(self.multiplied, self.hidden)
        if name == "wte":
            return [reading, multiplying] if self.tied else [reading]
        if name == "lm_head":
            return [multiplying]
        weights, keys = self.outputs[name], torch.zeros(rows, dtype=torch.bool)
        if statistics.difference_moment is None:
            return [Loss(weights, statistics.second_moment)]
        keys[rows // 3 : 2 * rows // 3] = True  # what keys share is not seen
        others = Loss(torch.where(keys, 0, weights), statistics.second_moment)
        return [others, Loss(torch.where(keys, weights, 0), statistics.difference_moment)]


def gradients(model: GPT2, ids: Tensor) -> Gradients:
    """Return what a backward pass of tokens [rows, T] says, of which the first SENSED_TOKENS are used.

    It runs half a layer at a time, and so holds what one of them needs.
    """
    tokens = ids[: max(1, SENSED_TOKENS // ids.shape[1]), :SENSED_TOKENS]
    linears = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    outputs: dict[str, Tensor] = {}
    hooks = [module.register_forward_hook(_noting(name, outputs)) for name, module in linears.items()]
    try:
        with torch.inference_mode(mode=False):
            with torch.no_grad():
                states = [model.embedded(tokens)]
                for half in model.halves():
                    states.append(half(states[-1]))
                hidden = model.ln_f(states[-1])
                slope, multiplied = _of_head(model, hidden.flatten(0, 1))
            slope = _backward(model.ln_f, states.pop(), slope.view_as(hidden))
            for half in reversed(model.halves()):
                slope = _backward(half, states.pop(), slope)
    finally:
        for hook in hooks:
            hook.remove()
    read = times_read(ids, model.config.vocab_size)
    return Gradients(
        outputs=outputs,
        embedded=_moment(slope),
        hidden=_moment(hidden),
        read=(read / read.sum()).float(),
        multiplied=multiplied,
        context=tokens.shape[1],
        tied=model.lm_head is None,
    )


def _of_head(model: GPT2, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients at hidden states [tokens, D], each of a token that is drawn, and mean p (1 - p) [V]."""
    table, random = model.head.dense(), torch.Generator().manual_seed(0)
    slopes, uncertainty = [], torch.zeros(len(table), dtype=torch.float64)
    for rows in hidden.split(HEAD_ROWS):
        chances = model.logits(rows).softmax(-1)  # [rows, V]
        uncertainty += uncertainties(chances)
        drawn = torch.multinomial(chances, 1, generator=random).squeeze(1)
        slopes.append(chances @ table - table[drawn])
    return torch.cat(slopes), (uncertainty.clamp_min(0) / len(hidden)).float()


def _backward(part: Callable[[Tensor], Tensor], x: Tensor, slope: Tensor) -> Tensor:
    """Return the gradient at x for that at part(x)."""
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(part(x), x, slope)
    return found


def _noting(name: str, outputs: dict[str, Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    def note(slope: Tensor) -> None:
        outputs[name] = slope.flatten(0, -2).square().mean(0)

    def hook(_module: nn.Module, _arguments: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(note)

    return hook


def _moment(x: Tensor) -> Tensor:
    """Return the mean of x x^T [D, D] over x [..., D]."""
    flat = x.flatten(0, -2)
    return flat.T @ flat / len(flat)


def sampled_rows(count: int) -> Tensor:
    """Return numbers of some of `count` rows, at most about SAMPLED_ROWS: groups that a trellis codes together."""
    groups = -(-count // LANES)
    step = max(1.0, groups * LANES / SAMPLED_ROWS)
    chosen = torch.arange(0, groups, step).long()  # [groups]
    rows = (chosen.unsqueeze(1) * LANES + torch.arange(LANES)).flatten()
    return rows[rows < count]


@torch.inference_mode()
def estimated(piece: Piece, weight: Tensor, statistics: Statistics, losses: list[Loss]) -> list[Choice]:
    """Return every candidate of a piece, its KL estimated on some of its rows.

    Args:
        piece: of the model.
        weight: of its own rows [out, in].
        statistics: of these rows.
        losses: of these rows, which add up.
    """
    rows, choices = sampled_rows(len(weight)), []
    losses = [loss.sampled(weight, rows) for loss in losses]
    for method, options in candidates(piece.matrix, (weight.shape[0], weight.shape[1])):
        find = METHODS[method]
        error = find.found_rows(piece.name, weight, rows, find.config(**options), statistics) - weight[rows]
        kl = sum(loss.of(error) for loss in losses)
        kl = min(max(kl, LEAST_KL), UNUSABLE) if math.isfinite(kl) else UNUSABLE
        choices.append(Choice(piece, method, options, size_bytes(options, (weight.shape[0], weight.shape[1])), kl))
    return choices
