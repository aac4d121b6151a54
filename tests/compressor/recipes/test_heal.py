"""Healing lowers the loss, resumes where it stopped, and touches nothing that is frozen."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from compressor.artifact.gpt2_config import GPT2Config
from compressor.codecs import Coded, Latent, codec_named
from compressor.formats import Dense, Format, LowRank
from compressor.gpt2 import GPT2
from compressor.methods import quantize, svd, tensorgpt, ttm
from compressor.methods.base import Target, is_target
from compressor.progress import Progress
from compressor.recipes import heal
from tests.cases import FORMAT_CASES
from tests.compressor.storage.test_durable import files_of_at_most
from tests.conftest import tiny_model
from tests.tolerances import EXACT

T = TypeVar("T")
SHAPE = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
CONFIG = heal.Config(tokens=40 * 4 * 16, batch=4, context=16, select_every=10, learning_rate=3e-2)


@pytest.fixture(scope="module")
def dense() -> GPT2:
    return tiny_model(SHAPE).expanded()


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return torch.randint(50, (3000,), generator=torch.Generator().manual_seed(0))


def _forms(dense: GPT2) -> dict[str, Format]:
    table = dense.wte.dense()
    return {
        "token_mps": tensorgpt.compress(table, tensorgpt.Config(rank=2, codec="int8")),
        "tt_matrix": ttm.compress(table, ttm.Config(rank=6, codec="int4-row")),
        "low_rank": svd.compress(table, svd.Config(rank=6, codec="int3-row")),
        "dense": quantize.compress(table, quantize.Config(codec="int2-row-zp")),
    }


@pytest.mark.parametrize("kind", ["token_mps", "tt_matrix", "low_rank", "dense"])
def test_every_format_heals(dense: GPT2, text: torch.Tensor, kind: str) -> None:
    compressed = dense.with_matrices({"wte": _forms(dense)[kind]})
    result = heal.heal(compressed, dense, text, CONFIG)
    assert result.kl_after < 0.9 * result.kl_before
    assert result.model.wte.spec() == compressed.wte.spec()
    assert result.model.wte.num_bytes == compressed.wte.num_bytes
    assert result.tokens == CONFIG.tokens


def test_what_is_measured_while_training_is_what_is_stored(dense: GPT2, text: torch.Tensor) -> None:
    compressed = dense.with_matrices({"wte": _forms(dense)["low_rank"]})
    result = heal.heal(compressed, dense, text, CONFIG)
    again = heal.heal(result.model, dense, text, heal.Config(tokens=0, batch=4, context=16))
    assert again.kl_before == pytest.approx(result.kl_after, rel=1e-3)


def test_frozen_matrices_stay_bit_for_bit(dense: GPT2, text: torch.Tensor) -> None:
    compressed = dense.with_matrices({"wte": _forms(dense)["dense"]})
    result = heal.heal(compressed, dense, text, CONFIG, frozen=lambda name: name != "wte")
    for name, form in compressed.matrices().items():
        same = all(torch.equal(result.model.matrices()[name].tensors()[key], t) for key, t in form.tensors().items())
        assert same == (name != "wte")
    vectors = compressed.vectors()
    assert all(torch.equal(vector.decode(), vectors[name].decode()) for name, vector in result.model.vectors().items())


def test_a_bias_heals_with_its_matrix_and_norms_with_the_whole_model(dense: GPT2, text: torch.Tensor) -> None:
    compressed = dense.with_matrices({"wte": _forms(dense)["dense"]})

    def changed(target: Target) -> set[str]:
        healed = heal.heal(compressed, dense, text, CONFIG, frozen=lambda name: not is_target(name, target)).model
        pairs = [(name, vector, compressed.vectors()[name]) for name, vector in healed.vectors().items()]
        return {name for name, after, before in pairs if not torch.equal(after.decode(), before.decode())}

    assert changed("mlp") == {"h.0.mlp.c_fc.bias", "h.0.mlp.c_proj.bias"}
    assert changed("qkv") == {"h.0.attn.c_attn.bias"}
    assert changed("all") == compressed.vectors().keys()
    with pytest.raises(ValueError, match="nothing that healing may change"):
        changed("none")


def test_a_resumed_run_ends_like_one_that_was_never_stopped(dense: GPT2, text: torch.Tensor, tmp_path: Path) -> None:
    compressed = dense.with_matrices({"wte": _forms(dense)["low_rank"]})
    whole = heal.heal(compressed, dense, text, CONFIG)

    with pytest.raises(StoppedError):
        heal.heal(compressed, dense, text, CONFIG, folder=tmp_path, progress=_until(25))
    resumed = heal.heal(compressed, dense, text, CONFIG, folder=tmp_path)
    assert resumed.kl_after == whole.kl_after
    for name, form in whole.model.matrices().items():
        assert all(torch.equal(resumed.model.matrices()[name].tensors()[key], t) for key, t in form.tensors().items())


class StoppedError(Exception):
    """What interrupts a run in these tests."""


def _until(steps: int) -> Progress:
    def progress(items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
        for i, item in enumerate(items):
            if i == steps:
                raise StoppedError
            yield item

    return progress


def _same(one: GPT2, other: GPT2) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


OTHERS: dict[str, Callable[[GPT2], GPT2]] = {
    "values": lambda dense: dense.with_matrices({"wte": quantize.compress(dense.wte.dense(), quantize.Config())}),
    "shape": lambda dense: dense.with_matrices(
        {"wte": svd.compress(dense.wte.dense(), svd.Config(rank=5, codec="fp32"))}
    ),
    "format": lambda dense: dense.with_matrices({"wte": _forms(dense)["tt_matrix"]}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_model_is_not_healed_from_this_ones_checkpoint(
    other: str, dense: GPT2, text: torch.Tensor, tmp_path: Path
) -> None:
    ours = dense.with_matrices({"wte": svd.compress(dense.wte.dense(), svd.Config(rank=6, codec="fp32"))})
    theirs = OTHERS[other](dense)
    expected = [heal.heal(model, dense, text, CONFIG).model for model in (ours, theirs)]
    for model in (ours, theirs):
        with pytest.raises(StoppedError):
            heal.heal(model, dense, text, CONFIG, folder=tmp_path, progress=_until(25))
    said: list[str] = []
    resumed = [heal.heal(m, dense, text, CONFIG, folder=tmp_path, echo=said.append).model for m in (ours, theirs)]
    assert all(map(_same, resumed, expected))
    assert len(said) == 2  # both were resumed


def test_whatever_decides_about_a_run_is_in_its_identity(dense: GPT2, text: torch.Tensor, tmp_path: Path) -> None:
    student = dense.with_matrices({"wte": _forms(dense)["low_rank"]})
    said: list[str] = []

    def checkpoints(teacher: GPT2 = dense, ids: torch.Tensor = text, **changes: Any) -> int:
        frozen = changes.pop("frozen", lambda name: False)
        config = replace(CONFIG, **({"tokens": 10 * 4 * 16} | changes))
        heal.heal(student, teacher, ids, config, frozen=frozen, folder=tmp_path, echo=said.append)
        return len(list(tmp_path.iterdir()))

    assert checkpoints() == 1
    assert checkpoints(teacher=tiny_model(SHAPE, seed=1).expanded()) == 2
    assert checkpoints(ids=text.flip(0)) == 3
    assert checkpoints(seed=1) == 4
    assert checkpoints(tokens=20 * 4 * 16) == 5
    assert checkpoints(frozen=lambda name: name == "wpe") == 6
    assert said == []
    assert checkpoints() == 6
    assert len(said) == 1


def test_minutes_that_were_begun_are_resumed_with_as_many_tokens(
    dense: GPT2, text: torch.Tensor, tmp_path: Path
) -> None:
    student = dense.with_matrices({"wte": _forms(dense)["low_rank"]})
    config = replace(CONFIG, tokens=10 * 4 * 16, minutes=0.5)
    assert heal.tokens_begun(tmp_path, student, dense, config) is None
    heal.heal(student, dense, text, replace(CONFIG, tokens=10 * 4 * 16), folder=tmp_path)
    assert heal.tokens_begun(tmp_path, student, dense, config) is None  # those tokens were asked for
    heal.heal(student, dense, text, config, folder=tmp_path)
    assert heal.tokens_begun(tmp_path, student, dense, replace(config, tokens=0)) == 10 * 4 * 16
    assert heal.tokens_begun(tmp_path, student, dense, replace(config, minutes=0.6)) is None
    assert heal.tokens_begun(tmp_path, dense, dense, config) is None


@pytest.mark.parametrize("left", [0, 7, 1000, -1], ids=["nothing", "half a length", "a header", "all but a byte"])
def test_a_damaged_checkpoint_is_refused_in_one_line(
    left: int, dense: GPT2, text: torch.Tensor, tmp_path: Path
) -> None:
    config = replace(CONFIG, tokens=10 * 4 * 16)
    heal.heal(dense, dense, text, config, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"is damaged .*; remove it to start again$"):
        heal.heal(dense, dense, text, config, folder=tmp_path)


def test_a_full_disk_costs_no_more_than_the_checkpoint(dense: GPT2, text: torch.Tensor, tmp_path: Path) -> None:
    student = dense.with_matrices({"wte": _forms(dense)["low_rank"]})
    expected = heal.heal(student, dense, text, CONFIG)
    said: list[str] = []
    with files_of_at_most(10_000):
        result = heal.heal(student, dense, text, CONFIG, folder=tmp_path / "full", echo=said.append)
    assert _same(result.model, expected.model)
    assert len(said) == CONFIG.steps // CONFIG.select_every
    assert "cannot write" in said[0]
    assert os.listdir(tmp_path / "full") == []


def test_it_stops_when_nothing_improves(dense: GPT2, text: torch.Tensor) -> None:
    config = heal.Config(tokens=10**6, batch=4, context=16, select_every=1, patience=3, learning_rate=1e-8)
    result = heal.heal(dense, dense, text, config)
    assert result.tokens <= 4 * 4 * 16
    assert result.kl_after == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": -1}, "heal_tokens must be between 2048"),
        ({"batch": 0}, "batch must be between 1"),
        ({"learning_rate": 0.0}, "learning_rate must be between"),
        ({"patience": 0}, "patience must be between 1"),
        ({"precision": "fp16"}, "precision must be one of auto, fp32, bf16, not 'fp16'"),
    ],
)
def test_illegal_options_name_the_field(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        heal.Config(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_either_precision_heals(precision: str, dense: GPT2, text: torch.Tensor) -> None:
    compressed = dense.with_matrices({"wte": _forms(dense)["low_rank"]})
    result = heal.heal(compressed, dense, text, replace(CONFIG, precision=precision))
    assert result.kl_after < 0.9 * result.kl_before
    again = heal.heal(result.model, dense, text, replace(CONFIG, tokens=0))
    assert again.kl_before == pytest.approx(result.kl_after, rel=1e-3)  # selection is in fp32


def test_the_gradient_is_that_of_the_loss() -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 50, generator=random).requires_grad_(), torch.randn(5, 50, generator=random)
    heal.distillation_loss(student, teacher).backward()
    assert student.grad is not None
    torch.testing.assert_close(heal.distillation_gradient(student.detach(), teacher), student.grad, rtol=0, atol=EXACT)


def test_a_text_that_is_too_short_or_a_context_that_is_too_long_is_refused(dense: GPT2) -> None:
    with pytest.raises(ValueError, match="text must have at least"):
        heal.heal(dense, dense, torch.zeros(30, dtype=torch.int64), CONFIG)
    with pytest.raises(ValueError, match="context must be between 2 and 16, not 17"):
        heal.heal(dense, dense, torch.zeros(3000, dtype=torch.int64), heal.Config(context=17))


@pytest.mark.parametrize("case", FORMAT_CASES)
@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "int2-row-zp"])
def test_a_trainable_copy_is_the_format_and_seals_to_it(case: str, codec: str) -> None:
    form = FORMAT_CASES[case]().recoded(codec)
    copy = form.trainable()
    torch.testing.assert_close(copy.dense(), form.dense(), rtol=10 * EXACT, atol=10 * EXACT)
    assert all(parameter.requires_grad for parameter in copy.parameters())
    sealed = copy.quantized()
    assert sealed.spec() == form.spec()
    assert all(torch.equal(sealed.tensors()[name], tensor) for name, tensor in form.tensors().items())
    copy.matmul(torch.randn(3, form.in_features)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in copy.parameters())


def test_the_straight_through_gradient_is_that_of_the_values_unless_clipped() -> None:
    coded = Latent(Coded.encode(codec_named("int2-row"), torch.tensor([[-3.0, -1.0, 1.0, 3.0]])))
    with torch.no_grad():
        coded.values[0, 3] = 100.0
    coded.decode().sum().backward()
    assert coded.values.grad is not None
    torch.testing.assert_close(coded.values.grad, torch.tensor([[1.0, 1.0, 1.0, 0.0]]))


def test_low_rank_factors_are_trained_as_factors() -> None:
    form = LowRank.of(torch.randn(6, 2), torch.randn(2, 5), "fp32").trainable()
    assert {name for name, _ in form.named_parameters()} == {"left.values", "right.values"}
    assert isinstance(Dense.of(torch.eye(2), "fp32").trainable(), Dense)
