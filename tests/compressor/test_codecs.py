"""What a codec promises about the numbers it stores."""

import pytest
import torch

from compressor.codecs import CODECS, Coded, codec_named, float_codec
from compressor.tensors import DTYPES
from tests.tolerances import EXACT, STORE

CODEC_NAMES = [*CODECS, "int4-row", "int3-g16-zp", "int2-row-zp"]


@pytest.fixture(params=CODEC_NAMES)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 8), (3, 4, 6), (0, 3)])
def test_values_come_back_within_the_codecs_precision(codec: str, shape: tuple[int, ...]) -> None:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    coded = Coded.encode(codec_named(codec), values)
    assert coded.shape == shape
    assert (coded.decode() - values).norm() <= STORE[codec.partition("-")[0]] * values.norm()


def test_the_layout_describes_what_is_stored(codec: str) -> None:
    coded = Coded.encode(codec_named(codec), torch.ones(4, 6))
    layout = codec_named(codec).layout((4, 6))
    assert {name: (tuple(part.shape), part.dtype) for name, part in coded.parts().items()} == {
        name: (part.shape, DTYPES[part.dtype]) for name, part in layout.items()
    }
    assert coded.num_bytes == sum(part.nbytes for part in coded.parts().values())


def test_taking_rows_is_decoding_them(codec: str) -> None:
    coded = Coded.encode(codec_named(codec), torch.randn(9, 5))
    ids = torch.tensor([[0, 8], [3, 3]])
    assert torch.equal(coded.take(ids), coded.decode()[ids])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(codec: str, bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Coded.encode(codec_named(codec), torch.tensor([[1.0, bad]]))


def test_fp16_refuses_what_it_would_turn_into_infinity() -> None:
    with pytest.raises(ValueError, match="65504"):
        Coded.encode(CODECS["fp16"], torch.tensor([70000.0]))


def test_int8_is_off_by_half_a_step_at_most_and_keeps_zero_rows() -> None:
    values = torch.randn(50, 16) * torch.logspace(-30, 30, 50).unsqueeze(1)
    values[7] = 0
    coded = Coded.encode(CODECS["int8"], values)
    step = coded.parts()["scale"].float()
    assert ((coded.decode() - values).abs() <= 0.5 * step * (1 + EXACT)).all()
    assert torch.equal(coded.decode()[7], torch.zeros(16))


def test_int8_refuses_a_scalar() -> None:
    with pytest.raises(ValueError, match="1 dimension"):
        Coded.encode(CODECS["int8"], torch.tensor(1.0))


def test_an_unknown_codec_or_dtype_names_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"codec must be one of fp32, .* not 'int1'"):
        codec_named("int1")
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        float_codec(torch.int64)
