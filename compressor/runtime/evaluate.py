"""How good a model is: pure measures of one model, and of one model against the dense one."""

import codecs
import hashlib
import lzma
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from compressor.artifact.manifest import Golden, Quality
from compressor.formats.base import blocks
from compressor.gpt2 import GPT2
from compressor.progress import Progress, silent
from compressor.runtime.finite import check_logits
from compressor.runtime.generate import generate

HEAD_ROWS = 256  # positions whose logits exist at a time: 51 MB at V = 50257
XZ_MAGIC = b"\xfd7zXZ\x00"
GOLDEN_PROMPT = "The old man looked at the sea"
GOLDEN_TOKENS = 16
GOLDEN_TOP = 8
# Low-bit kernels take bf16 activations (8 bits of mantissa), and CPUs differ in the order they add up.
GOLDEN_TOLERANCE = 0.25
GOLDEN_SHARE = 2**-8  # of the largest logit, for models whose logits are so large that it is more


@dataclass(frozen=True)
class Text:
    """A text to be predicted.

    Attributes:
        name: file name.
        sha256: of the UTF-8 bytes.
        num_bytes: of the text.
        ids: its tokens [T].
    """

    name: str
    sha256: str
    num_bytes: int
    ids: Tensor


def read_utf8(path: Path, field: str = "text") -> str:
    """Return the contents of a text file, plain or .xz, line ends as they are, without a byte order mark.

    Raises:
        ValueError: beginning with `field`, if there is no such file, or it is not UTF-8.
    """
    try:
        data = path.read_bytes()
        is_packed = path.suffix == ".xz" or data.startswith(XZ_MAGIC)
        data = lzma.decompress(data) if is_packed else data
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except OSError as error:
        raise ValueError(f"{field}: cannot read {path}: {error.strerror}") from error
    except lzma.LZMAError as error:
        raise ValueError(f"{field}: {path} is not an xz file: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{field}: {path} is not UTF-8 (byte {error.start})") from error


def read_text(path: Path, tokenizer: Tokenizer, field: str = "text") -> Text:
    """Return the tokens of a UTF-8 text file, plain or .xz.

    Raises:
        ValueError: beginning with `field`, if there is no such file, it is not UTF-8, or it has fewer than 2 tokens.
    """
    text = read_utf8(path, field)
    data, ids = text.encode(), tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    if len(ids) < 2:
        raise ValueError(f"{field}: {path} must have at least 2 tokens, not {len(ids)}")
    return Text(path.name, hashlib.sha256(data).hexdigest(), len(data), torch.tensor(ids))


@torch.inference_mode()
def evaluate(model: GPT2, dense: GPT2 | None, text: Text, progress: Progress = silent) -> Quality:
    """Return the quality of `model` on `text`, and against `dense` where it is given.

    Windows of `n_positions` tokens that do not overlap; every token but the first is predicted once.
    Both models must be prepared and share the tokenizer.

    Raises:
        ValueError: if logits are not finite, naming the matrix.
    """
    context = model.config.n_positions
    windows = blocks(len(text.ids) - 1, context)
    totals = torch.zeros(4, dtype=torch.float64)  # nll, dense nll, KL, agreements
    for window in progress(windows, label="Evaluating", total=len(windows)):
        inputs = text.ids[window.start : window.stop].unsqueeze(0)  # [1, T]
        targets = text.ids[window.start + 1 : window.stop + 1]  # [T]
        hidden = model(inputs)[0]  # [T, D]
        dense_hidden = dense(inputs)[0] if dense else None
        for rows in blocks(len(targets), HEAD_ROWS):
            part = slice(rows.start, rows.stop)
            ours = F.log_softmax(model.logits(hidden[part]), dim=-1)  # [rows, V]
            totals[0] += F.nll_loss(ours, targets[part], reduction="sum")
            if dense and dense_hidden is not None:
                reference = F.log_softmax(dense.logits(dense_hidden[part]), dim=-1)
                totals[1] += F.nll_loss(reference, targets[part], reduction="sum")
                totals[2] += kl_divergence(ours, reference)
                totals[3] += (ours.argmax(-1) == reference.argmax(-1)).sum()
        if not totals.isfinite().all():
            check_logits(model, inputs)
            raise ValueError(f"text: the loss on {text.name} is not finite")
    return _quality(text, context, totals.tolist(), against_dense=dense is not None)


def kl_divergence(ours: Tensor, reference: Tensor) -> Tensor:
    """Return the summed KL divergence of log-probabilities [rows, V] from those of the reference."""
    return F.kl_div(ours, reference, reduction="sum", log_target=True)


def _quality(text: Text, context: int, totals: list[float], *, against_dense: bool) -> Quality:
    tokens = len(text.ids) - 1
    nll, dense_nll, kl, agreements = totals
    return Quality(
        text=text.name,
        text_sha256=text.sha256,
        tokens=tokens,
        context=context,
        stride=context,
        perplexity=_exp(nll / tokens),
        bits_per_byte=nll / math.log(2) / text.num_bytes,
        dense_perplexity=_exp(dense_nll / tokens) if against_dense else None,
        perplexity_ratio=_exp((nll - dense_nll) / tokens) if against_dense else None,
        kl=max(kl / tokens, 0.0) if against_dense else None,
        top1_agreement=agreements / tokens if against_dense else None,
    )


def _exp(value: float) -> float:
    """Return e to the `value` without overflow: a perplexity above 1e300 is as useless as 1e300."""
    return math.exp(min(value, math.log(1e300)))


@torch.inference_mode()
def golden(model: GPT2, tokenizer: Tokenizer) -> Golden:
    """Return known answers of a prepared model, to be reproduced wherever it is loaded.

    Raises:
        ValueError: if logits are not finite, naming the matrix.
    """
    check_logits(model)
    prompt = tokenizer.encode(GOLDEN_PROMPT, add_special_tokens=False).ids[: model.config.n_positions // 2]
    prompt = prompt or [model.config.eos_token_id]
    room = min(GOLDEN_TOKENS, model.config.n_positions - len(prompt))
    check_logits(model, torch.tensor([prompt]))
    ids = generate(model, torch.tensor([prompt]), room, temperature=0.0)[0]  # [T + room]
    logits = model.logits(model(ids.unsqueeze(0))[0, len(prompt) - 1 : -1])  # [room, V]
    best = logits.topk(2, dim=-1).values  # [room, 2]
    tolerance = max(GOLDEN_TOLERANCE, GOLDEN_SHARE * float(best.abs().max()))
    certain = (best[:, 0] - best[:, 1] > 2 * tolerance).long().cumprod(0).sum()
    top = logits[0].topk(min(GOLDEN_TOP, logits.shape[-1]))
    return Golden(
        prompt_ids=prompt,
        continuation_ids=ids[len(prompt) :][: int(certain)].tolist(),
        top_ids=top.indices.tolist(),
        top_logits=[round(value, 4) for value in top.values.tolist()],
        tolerance=tolerance,
    )
