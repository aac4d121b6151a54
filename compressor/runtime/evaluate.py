"""How good a model is: pure measures of one model, and of one model against the dense one."""

import codecs
import hashlib
import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compressor.artifact.manifest import Golden, Quality
from compressor.errors import check_range
from compressor.progress import Progress, silent
from compressor.runtime._decoder import judge
from compressor.runtime.generate import generate
from compressor.runtime.kv import Cache
from compressor.runtime.model import Floats, Ids, Model

HEAD_ROWS = 64  # positions whose logits exist at a time: 13 MB at V = 50257
XZ_MAGIC = b"\xfd7zXZ\x00"
GOLDEN_PROMPT = "The old man looked at the sea"
GOLDEN_TOKENS = 16
GOLDEN_TOP = 8
GOLDEN_TOLERANCE = 1e-3  # every CPU computes the same bits, and the manifest has four decimals of them
GOLDEN_SHARE = 2**-20  # of the largest logit, for models whose logits are so large that it is more


@dataclass(frozen=True)
class Text:
    """A text to be predicted.

    Attributes:
        name: file name.
        sha256: of the UTF-8 bytes.
        num_bytes: of the text in the file.
        ids: its tokens [T], int64.
    """

    name: str
    sha256: str
    num_bytes: int
    ids: Ids


class Window(NamedTuple):
    """Tokens [start, stop) of a text that are read at once; what follows each is predicted from `first` on."""

    start: int
    first: int
    stop: int


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


def as_it_is(text: str) -> str:
    """Return a text as it is."""
    return text


def read_text(path: Path, tokenizer: Tokenizer, field: str = "text", change: Callable[[str], str] = as_it_is) -> Text:
    """Return the tokens of a UTF-8 text file, plain or .xz.

    Args:
        path: of the file.
        tokenizer: of the model.
        field: that errors name.
        change: what is done to the text before it is tokenised; checksum and bytes are those of the file.

    Raises:
        ValueError: beginning with `field`, if there is no such file, it is not UTF-8, or it has fewer than 2 tokens.
    """
    text = read_utf8(path, field)
    data, ids = text.encode(), tokenizer.encode_batch_fast([change(text)], add_special_tokens=False)[0].ids
    if len(ids) < 2:
        raise ValueError(f"{field}: {path} must have at least 2 tokens, not {len(ids)}")
    return Text(path.name, hashlib.sha256(data).hexdigest(), len(data), np.array(ids, np.int64))


def evaluate(
    model: Model,
    dense: Model | None,
    text: Text,
    progress: Progress = silent,
    *,
    states: Floats | None = None,
    stride: int | None = None,
) -> Quality:
    """Return the quality of `model` on `text`, and against `dense` where it is given.

    Windows of `n_positions` tokens; every token but the first is predicted once.

    Args:
        model: the model.
        dense: another one with the same tokenizer, if any.
        text: what is predicted.
        progress: progress callback.
        states: the dense model's hidden states [T - 1, D] where they are known, see `compressor.runtime.kept`.
        stride: tokens from one window to the next; by default windows do not overlap.

    Raises:
        ValueError: if logits are not finite, or `stride` is not between 1 and `n_positions`.
    """
    totals = np.zeros(4)  # nll, dense nll, KL, agreements
    windows = windows_of(model, text, stride)
    for window in progress(windows, label="Evaluating", total=len(windows)):
        known = None
        hidden = _states_of(model, text, window)
        if dense is not None:
            known = _states_of(dense, text, window) if states is None else states[window.first : window.stop]
        for start in range(0, len(hidden), HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            theirs = None if dense is None or known is None else dense.logits(known[part])
            targets = text.ids[window.first + 1 : window.stop + 1][part]
            found = verdicts(model.logits(hidden[part]), targets, theirs, model.threads)
            totals += [-found[:, 0].sum(), -found[:, 1].sum(), found[:, 2].sum(), (found[:, 3] == found[:, 4]).sum()]
        if not np.isfinite(totals).all():
            raise ValueError(f"text: the loss on {text.name} is not finite")
    context = model.config.n_positions
    return _quality(text, context, stride or context, totals.tolist(), against_dense=dense is not None)


def windows_of(model: Model, text: Text, stride: int | None = None) -> list[Window]:
    """Return the windows of a text's tokens that are read one by one; the last token is only predicted.

    Raises:
        ValueError: if `stride` is not between 1 and `n_positions`.
    """
    count, size = len(text.ids) - 1, model.config.n_positions
    step = size if stride is None else stride
    check_range("stride", step, 1, size)
    starts = range(0, max(count - size + step, 1), step)
    return [Window(start, start and start - step + size, min(start + size, count)) for start in starts]


def _states_of(model: Model, text: Text, window: Window) -> Floats:
    """Return the hidden states behind which the tokens of a window are predicted, [stop - first, D]."""
    return hidden_states(model, text.ids[window.start : window.stop])[window.first - window.start :]


def hidden_states(model: Model, ids: Ids) -> Floats:
    """Return the hidden states behind tokens [T] of one text, [T, D]."""
    cache = Cache(model.config, 1, len(ids))
    hidden = model.read(ids, cache, np.array([0]), np.array([len(ids)]), hidden=True).hidden
    assert hidden is not None  # noqa: S101 - they are wanted
    return hidden


def all_hidden_states(model: Model, text: Text, progress: Progress = silent, stride: int | None = None) -> Floats:
    """Return the hidden states behind every token of a text but the last, [T - 1, D], as `evaluate` reads them."""
    windows, states = windows_of(model, text, stride), np.empty((len(text.ids) - 1, model.config.n_embd), np.float32)
    for window in progress(windows, label="Evaluating the dense model", total=len(windows)):
        states[window.first : window.stop] = _states_of(model, text, window)
    return states


def verdicts(logits: Floats, targets: Ids, reference: Floats | None, threads: int) -> NDArray[np.float64]:
    """Return how good logits [n, V] are, [n, 5], see `compressor.runtime._decoder.judge`."""
    out = np.empty((len(logits), 5))
    judge(logits, targets, out, reference=reference, threads=threads)
    return out


def _quality(text: Text, context: int, stride: int, totals: list[float], *, against_dense: bool) -> Quality:
    tokens = len(text.ids) - 1
    nll, dense_nll, kl, agreements = totals
    return Quality(
        text=text.name,
        text_sha256=text.sha256,
        tokens=tokens,
        context=context,
        stride=stride,
        perplexity=bounded_exp(nll / tokens),
        bits_per_byte=nll / math.log(2) / text.num_bytes,
        dense_perplexity=bounded_exp(dense_nll / tokens) if against_dense else None,
        perplexity_ratio=bounded_exp((nll - dense_nll) / tokens) if against_dense else None,
        kl=max(kl / tokens, 0.0) if against_dense else None,
        top1_agreement=agreements / tokens if against_dense else None,
    )


def bounded_exp(value: float) -> float:
    """Return e to the `value` without overflow: a perplexity above 1e300 is as useless as 1e300."""
    return math.exp(min(value, math.log(1e300)))


def golden(model: Model, tokenizer: Tokenizer) -> Golden:
    """Return known answers of a model, to be reproduced wherever it is loaded.

    Raises:
        ValueError: if logits are not finite.
    """
    prompt = tokenizer.encode(GOLDEN_PROMPT, add_special_tokens=False).ids[: model.config.n_positions // 2]
    prompt = prompt or [model.config.eos_token_id]
    room = min(GOLDEN_TOKENS, model.config.n_positions - len(prompt))
    ids = generate(model, np.array([prompt]), room, temperature=0.0)[0]  # [T + room]
    logits = model.logits(hidden_states(model, ids)[len(prompt) - 1 : -1])  # [room, V]
    ordered = np.argsort(-logits, kind="stable")  # [room, V]
    best = np.take_along_axis(logits, ordered[:, :2], -1)  # [room, 2]
    tolerance = max(GOLDEN_TOLERANCE, GOLDEN_SHARE * float(np.abs(best).max()))
    certain = int((best[:, 0] - best[:, -1] > 2 * tolerance).cumprod().sum())
    top = ordered[0, :GOLDEN_TOP]
    return Golden(
        prompt_ids=prompt,
        continuation_ids=ids[len(prompt) :][:certain].tolist(),
        top_ids=top.tolist(),
        top_logits=[round(value, 4) for value in logits[0, top].tolist()],
        tolerance=tolerance,
    )
