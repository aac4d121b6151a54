"""Calibration: the model's own text, the user's, and what either says about every matrix."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from compressor import huggingface
from compressor.artifact.gpt2_config import GPT2Config
from compressor.formats import Dense
from compressor.gpt2 import GPT2, Block
from compressor.huggingface import Checkpoint
from compressor.recipes.build import build
from compressor.recipes.calibrate import DISTANCES, collect, read_ids, sample_text
from compressor.recipes.context import Context
from compressor.recipes.plans import Recipe
from compressor.runtime.evaluate import read_text
from tests.conftest import tiny_model
from tests.tolerances import EXACT

SMALL = GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2, n_inner=32, eos_token_id=0)
IDS = torch.randint(50, (6, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> GPT2:
    return tiny_model(SMALL).expanded()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(huggingface.EMBEDDED_FOLDER / "tokenizer.json"))


def close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, expected, rtol=10 * EXACT, atol=EXACT)


def test_sampled_text_fills_contexts_and_depends_on_its_seed_only() -> None:
    model = tiny_model(SMALL).decoder()
    text = sample_text(model, tokens=300, seed=1)
    assert text.shape == (19, 16)
    assert (text[:, 0] == SMALL.eos_token_id).all()
    assert torch.equal(text, sample_text(model, tokens=300, seed=1))
    assert not torch.equal(text, sample_text(model, tokens=300, seed=2))
    assert len({tuple(row) for row in text.tolist()}) == 19  # batches differ


def test_statistics_of_the_linears_are_their_inputs_second_moments(model: GPT2) -> None:
    found = collect(model, IDS)
    with torch.inference_mode():
        block = model.h[0]
        assert isinstance(block, Block)
        x = model.wte.rows(IDS) + model.wpe.rows(torch.arange(16))  # [B, T, D]
        inputs = block.ln_1(x).flatten(0, 1)  # [tokens, D]
        y = x + block.attn(block.ln_1(x))
        inner = block.mlp.activation(block.mlp.c_fc(block.ln_2(y))).flatten(0, 1)  # [tokens, 4 D]
    close(found["h.0.attn.c_attn"].second_moment, inputs.T @ inputs / len(inputs))
    close(found["h.0.mlp.c_proj"].second_moment, inner.T @ inner / len(inner))
    assert found["h.0.attn.c_attn"].row_weights is None
    assert {name for name, given in found.items() if given.heads == 2} == {f"h.{i}.attn.c_attn" for i in range(2)}
    rows = inputs.unflatten(0, IDS.shape)  # [B, T, D]
    pairs = [(b, s, t) for b in range(6) for t in range(16) for s in range(t) if t - s in DISTANCES]
    apart = torch.stack([rows[b, t] - rows[b, s] for b, s, t in pairs])
    close(found["h.0.attn.c_attn"].difference_moment, apart.T @ apart / len(apart) / 2)
    assert [name for name, given in found.items() if given.difference_moment is not None] == [
        "h.0.attn.c_attn",
        "h.1.attn.c_attn",
    ]
    assert found.keys() == SMALL.matrix_shapes().keys()
    for name, (_, width) in SMALL.matrix_shapes().items():
        assert found[name].second_moment.shape == (width, width)


def _of_the_head(model: GPT2) -> tuple[Tensor, Tensor]:
    """Return the second moment of the hidden states, and E p (1 - p) over its mean."""
    with torch.inference_mode():
        hidden = model(IDS).flatten(0, 1)  # [tokens, D]
        chances = model.logits(hidden).softmax(-1)  # [tokens, V]
    uncertainty = (chances * (1 - chances)).mean(0)
    return hidden.T @ hidden / len(hidden), uncertainty / uncertainty.mean()


def _read() -> Tensor:
    counts = IDS.flatten().bincount(minlength=50) + 1.0
    return counts / counts.mean()


def test_statistics_of_a_tied_table_mean_reading_and_multiplying(model: GPT2) -> None:
    wte = collect(model, IDS)["wte"]
    moment, uncertainty = _of_the_head(model)
    close(wte.second_moment, (moment + moment.diagonal().mean() * torch.eye(8)) / 2)
    close(wte.row_weights, (_read() + uncertainty) / 2)


def test_statistics_of_untied_tables_keep_reading_and_multiplying_apart() -> None:
    tied = tiny_model(SMALL)
    head = Dense.of(torch.randn(50, 8, generator=torch.Generator().manual_seed(9)), "fp32")
    untied = GPT2(SMALL, tied.matrices() | {"lm_head": head}, tied.vectors()).expanded()
    found = collect(untied, IDS)
    moment, uncertainty = _of_the_head(untied)
    close(found["lm_head"].second_moment, moment)
    close(found["lm_head"].row_weights, uncertainty)
    close(found["wte"].second_moment, torch.eye(8))
    close(found["wte"].row_weights, _read())


def test_collecting_leaves_no_hook_behind(model: GPT2) -> None:
    collect(model, IDS)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("shape", [(0, 16), (16,)])
def test_collecting_refuses_ids_of_another_shape(model: GPT2, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ids must have shape"):
        collect(model, torch.zeros(shape, dtype=torch.int64))


def test_text_files_are_read_plain_and_compressed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.xz"
    plain.write_text("The old man looked at the sea. " * 10)
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    ids = read_ids([plain], tokenizer, context=8)
    assert ids.shape[1] == 8
    assert torch.equal(ids, read_ids([packed], tokenizer, context=8))
    assert tokenizer.decode(ids[0].tolist()).startswith("The old man")
    assert len(read_ids([plain, packed], tokenizer, context=8)) > len(ids)


def test_a_text_shorter_than_one_context_is_refused_with_both_numbers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("The old man")
    with pytest.raises(ValueError, match=r"calibration text must have at least 512 tokens.*, not 3$"):
        read_ids([path], tokenizer, context=512)
    assert read_ids([path], tokenizer, context=3).shape == (1, 3)


# Texts of any length, whose tokens are short, long, or all one word.
LONG_TEXTS = {
    "English": "The tide was out, and the boats leaned upon the hard. " * 8000,
    "Chinese": "\N{CJK UNIFIED IDEOGRAPH-6F6E}\N{CJK UNIFIED IDEOGRAPH-6C34}\N{IDEOGRAPHIC FULL STOP}" * 80000,
    "one long word": "harbour" * 60000,
    "one space in the middle": "harbour" * 30000 + " " + "master" * 30000,
    "Windows": "The tide was out.\r\n\r\nThe boats leaned.\r\n" * 8000,
    "white space": " " * 300000 + "\n" * 300000,
    "dashes": "-" * 600000,
    "emoji": "\N{SAILBOAT}" * 120000,
}


@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_any_text_gives_all_the_rows_that_it_has(tokenizer: Tokenizer, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(LONG_TEXTS[kind].encode())
    whole = len(tokenizer.encode(LONG_TEXTS[kind], add_special_tokens=False).ids)
    for tokens in (64, 1000, 16384):
        ids = read_ids([path], tokenizer, context=64, tokens=tokens)
        assert ids.shape == (min(-(-tokens // 64), whole // 64), 64)


def test_a_byte_order_mark_is_no_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plain, marked, packed = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt.xz"))
    plain.write_text("The old man looked at the sea. " * 10)
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    packed.write_bytes(lzma.compress(marked.read_bytes()))
    expected = read_ids([plain], tokenizer, context=8)
    for path in (marked, packed):
        assert torch.equal(read_ids([path], tokenizer, context=8), expected)
        assert np.array_equal(read_text(path, tokenizer).ids, read_text(plain, tokenizer).ids)


def test_a_long_text_gives_excerpts_from_beginning_to_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("sea " * 5000 + "man " * 5000 + "old " * 5000)
    ids = read_ids([path], tokenizer, context=16, tokens=64)
    assert ids.shape == (4, 16)
    words = [tokenizer.decode(row.tolist()).split() for row in ids]
    assert set(words[0]) == {"sea"}
    assert set(words[-1]) == {"old"}


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("none.txt", None, "cannot read"),
        ("bad.txt", b"\xff\xfe", "not UTF-8"),
        ("bad.xz", b"plain", "not an xz file"),
        ("empty.txt", b"", "at least 8 tokens.*, not 0"),
        ("blank.txt", b" ", "at least 8 tokens.*, not 1"),
        ("cut.xz", lzma.compress(b"The old man")[:-9], "not an xz file"),
    ],
)
def test_a_bad_text_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, name: str, data: bytes | None, problem: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"calibration text.*{problem}"):
        read_ids([tmp_path / name], tokenizer, context=8)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    embedded = huggingface.load(huggingface.EMBEDDED)
    return Checkpoint(tiny_model(), embedded.tokenizer_json, embedded.source)


@pytest.mark.parametrize(
    ("target", "changed"),
    [
        ("embedding", {"wte"}),
        ("qkv", {"c_attn"}),
        ("attn", {"c_attn", "attn.c_proj"}),
        ("mlp", {"c_fc", "mlp.c_proj"}),
        ("linears", {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"}),
        ("all", {"wte", "wpe", "c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"}),
        ("none", set()),
    ],
)
def test_a_recipe_chooses_its_targets(checkpoint: Checkpoint, target: str, changed: set[str]) -> None:
    recipe = Recipe(method="svd", options={"rank": 2}, target=target)  # type: ignore[arg-type]
    compressed = recipe.compressed(Context(checkpoint=checkpoint)).matrices()
    low_rank = {name for name, form in compressed.items() if form.kind == "low_rank"}
    expected = {name for name in compressed if any(name.endswith(end) for end in changed)}
    assert low_rank == expected
    assert recipe.settings()["target"] == target


def test_an_illegal_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target must be one of none, embedding, .* not 'head'"):
        Recipe(method="svd", options={}, target="head")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target must be none for dense"):
        Recipe(method="dense", options={}, target="mlp")


@pytest.mark.parametrize("method", ["whitened_svd", "lpa", "gptq"])
def test_methods_get_the_statistics_of_the_text_they_are_given(checkpoint: Checkpoint, method: str) -> None:
    options = {} if method == "gptq" else {"rank": 4}
    recipe = Recipe(method=method, options=options, target="attn")
    ids = torch.randint(16384, (2, 64), generator=torch.Generator().manual_seed(1))
    one, same, other = (
        recipe.compressed(Context(checkpoint=checkpoint, given=text)).matrices()["h.0.attn.c_attn"].dense()
        for text in (ids, ids.clone(), torch.full((1, 64), 7))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_build_says_what_it_was_calibrated_with(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("The old man looked at the sea. " * 20)
    recipe = Recipe(method="lpa", options={"rank": 4})
    manifest = build(Context(checkpoint=checkpoint, texts=[text]), recipe, tmp_path / "out", text=text)
    assert manifest.provenance.config["calibration"] == ["mine.txt"]


def test_a_method_without_any_text_calibrates_on_the_models_own() -> None:
    embedded = huggingface.load(huggingface.EMBEDDED)
    model = Checkpoint(tiny_model(SMALL), embedded.tokenizer_json, embedded.source)
    compressed = Recipe(method="whitened_svd", options={"rank": 4}).compressed(Context(checkpoint=model))
    assert compressed.matrices()["wte"].kind == "low_rank"
