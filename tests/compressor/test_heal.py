"""Healing lowers the loss, resumes where it stopped, and touches nothing that is frozen."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from compressor import heal
from compressor.codecs import Coded, Latent, codec_named
from compressor.formats import Dense, Format, LowRank
from compressor.gpt2 import GPT2, GPT2Config
from compressor.methods import quantize, svd, tensorgpt, ttm
from tests.cases import FORMAT_CASES
from tests.conftest import tiny_model
from tests.tolerances import EXACT

T = TypeVar("T")
SHAPE = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32, eos_token_id=0)
CONFIG = heal.Config(tokens=40 * 4 * 16, batch=4, context=16, select_every=10, learning_rate=3e-2)


@pytest.fixture(scope="module")
def dense() -> GPT2:
    return tiny_model(SHAPE).prepared()


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
    assert not torch.equal(result.model.ln_f.weight, compressed.ln_f.weight)


def test_a_resumed_run_ends_like_one_that_was_never_stopped(dense: GPT2, text: torch.Tensor, tmp_path: Path) -> None:
    compressed = dense.with_matrices({"wte": _forms(dense)["low_rank"]})
    whole = heal.heal(compressed, dense, text, CONFIG)

    class StoppedError(Exception):
        pass

    def until_step_25(items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
        for i, item in enumerate(items):
            if i == 25:
                raise StoppedError
            yield item

    with pytest.raises(StoppedError):
        heal.heal(compressed, dense, text, CONFIG, folder=tmp_path, progress=until_step_25)
    resumed = heal.heal(compressed, dense, text, CONFIG, folder=tmp_path)
    assert resumed.kl_after == whole.kl_after
    for name, form in whole.model.matrices().items():
        assert all(torch.equal(resumed.model.matrices()[name].tensors()[key], t) for key, t in form.tensors().items())


def test_a_checkpoint_of_another_run_is_refused(dense: GPT2, text: torch.Tensor, tmp_path: Path) -> None:
    compressed = dense.with_matrices({"wte": _forms(dense)["dense"]})
    heal.heal(compressed, dense, text, CONFIG, folder=tmp_path)
    other = heal.Config(tokens=64, batch=4, context=16)
    with pytest.raises(ValueError, match="belongs to another healing run"):
        heal.heal(compressed, dense, text, other, folder=tmp_path)


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
    sealed = copy.sealed()
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
