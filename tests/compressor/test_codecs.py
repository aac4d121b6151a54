"""What a codec promises about the numbers it stores."""

import pytest
import torch

from compressor.codecs import CODECS, Coded, codec_named, float_codec
from compressor.codecs.rotation import block_of, rotate, unrotate
from compressor.tensors import DTYPES
from tests.tolerances import EXACT, STORE

CODEC_NAMES = [*CODECS, "int4-row", "int3-g16-zp", "int2-row-zp", "int4-row-h", "tr3-h"]


@pytest.fixture(params=CODEC_NAMES)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 8), (3, 4, 6), (0, 3), (64, 40)])
def test_values_come_back_within_the_codecs_precision(codec: str, shape: tuple[int, ...]) -> None:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    coded = Coded.encode(codec_named(codec), values)
    assert coded.shape == shape
    if codec.startswith("tr") and shape != (64, 40):  # few rows do not share bits
        assert (coded.decode() - values).norm() <= values.norm()
        return
    assert (coded.decode() - values).norm() <= STORE[codec.partition("-")[0]] * values.norm()


def test_the_layout_describes_what_is_stored(codec: str) -> None:
    coded = Coded.encode(codec_named(codec), torch.ones(4, 6))
    layout = codec_named(codec).layout((4, 6))
    assert {name: (tuple(part.shape), part.dtype) for name, part in coded.parts().items()} == {
        name: (part.shape, DTYPES[part.dtype]) for name, part in layout.items()
    }
    assert coded.num_bytes == sum(part.nbytes for part in coded.parts().values())


def test_taking_rows_is_decoding_them(codec: str) -> None:
    coded = Coded.encode(codec_named(codec), torch.randn(39, 5))
    ids = torch.tensor([[0, 38], [3, 3]])
    for stored in (coded, coded.trainable()):
        assert torch.equal(stored.take(ids), stored.decode()[ids])


@pytest.mark.parametrize(("bits", "error"), [(1, 0.316), (2, 0.084), (3, 0.0228), (4, 0.0062)])
def test_a_trellis_stores_normal_values_better_than_any_levels_could(bits: int, error: float) -> None:
    """The best levels of one value leave 0.363, 0.118, 0.0345 and 0.0095 of the squares (Max, 1960)."""
    values = torch.randn(1024, 256, generator=torch.Generator().manual_seed(1))
    change = Coded.encode(codec_named(f"tr{bits}"), values).decode() - values
    assert change.square().mean() <= error


@pytest.mark.parametrize("columns", [1, 7, 12, 20, 48, 64, 96, 320, 768])
def test_a_rotation_is_orthogonal_and_mixes_its_block(columns: int) -> None:
    block, _ = block_of(columns)
    turned = rotate(torch.eye(columns, dtype=torch.float64))
    assert torch.equal(turned.abs().sum(1), torch.full((columns,), float(block), dtype=torch.float64))
    assert torch.equal(turned @ turned.T, block * torch.eye(columns, dtype=torch.float64))
    assert torch.equal(unrotate(turned), block * torch.eye(columns, dtype=torch.float64))


def test_a_rotated_row_has_no_outlier() -> None:
    values = torch.full((16, 768), 0.01)
    values[:, 5] = 1
    errors = {}
    for name in ("int3-row", "int3-row-h"):
        errors[name] = (Coded.encode(codec_named(name), values).decode() - values).norm()
    assert errors["int3-row-h"] < errors["int3-row"] / 2


@pytest.mark.parametrize("name", ["tr2", "tr3-h"])
def test_training_a_trellis_moves_its_scales_alone(name: str) -> None:
    first = torch.randn(48, 24, generator=torch.Generator().manual_seed(0))
    stored, other = Coded.encode(codec_named(name), first), 2 * first
    trained = stored.trainable()
    assert [name for name, _ in trained.named_parameters()] == ["scale"]
    optimizer = torch.optim.Adam(trained.parameters(), lr=float(trained.get_parameter("scale").detach().mean()) / 50)
    for _ in range(100):
        optimizer.zero_grad()
        (trained.decode() - other).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        now = trained.decode()
    assert torch.equal(trained.quantized().parts()["codes"], stored.parts()["codes"])
    torch.testing.assert_close(trained.quantized().decode(), now)
    assert (now - other).norm() <= 0.85 * (stored.decode() - other).norm()


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
