"""The kernels in C against plain torch: the same products, and the same row whatever is computed beside it."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compressor import native
from compressor.codecs import CODECS, Coded, codec_named
from compressor.formats import Dense, prepared
from compressor.gpt2 import ACTIVATIONS, GPT2
from tests.conftest import TINY, tiny_model
from tests.tolerances import KV_CACHE, NATIVE, STEP

needs_kernels = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels are not built, or this CPU has no AVX2")
CASES = [  # codec, out, in
    ("int8", 1, 16),
    ("int8", 33, 80),
    ("int8", 40, 4112),
    ("int4", 7, 64),
    ("int4", 35, 3072),
    ("int4-g128", 34, 256),
    ("int4-row", 5, 320),
]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _coded(codec: str, out: int, columns: int) -> tuple[Coded, "native.Matrix"]:
    coded = Coded.encode(codec_named(codec), _normal(out, columns))
    assert coded.kernel is not None
    return coded, coded.kernel


@needs_kernels
@pytest.mark.parametrize(("codec", "out", "columns"), CASES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 33])
def test_products_are_those_of_the_decoded_matrix(codec: str, out: int, columns: int, rows: int) -> None:
    coded, codes = _coded(codec, out, columns)
    x = _normal(rows, columns, seed=1) * torch.logspace(-6, 6, rows).unsqueeze(-1)
    expected = x.double() @ coded.decode(torch.float64).T  # [rows, out]
    found = native.linear(x, codes)
    assert found.shape == expected.shape
    assert ((found - expected).norm(dim=-1) <= NATIVE * x.norm(dim=-1) * coded.decode().norm()).all()


@needs_kernels
@pytest.mark.parametrize(("codec", "out", "columns"), CASES)
def test_a_row_is_bitwise_the_same_in_any_batch_and_with_any_number_of_threads(
    codec: str, out: int, columns: int
) -> None:
    codes = native.with_bias(_coded(codec, out, columns)[1], _normal(out))
    x = _normal(64, columns, seed=1)
    norm = native.norm(_normal(columns, seed=2), _normal(columns, seed=3), 1e-5)
    residual = _normal(64, out, seed=4)

    def product(rows: slice) -> Tensor:
        return native.linear(x[rows], codes, norm=norm, activation="gelu_new", residual=residual[rows])

    alone = torch.cat([product(slice(row, row + 1)) for row in range(64)])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for size in (1, 2, 3, 7, 8, 64):
                batches = [product(slice(start, start + size)) for start in range(0, 64, size)]
                assert torch.equal(torch.cat(batches), alone)
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.skipif(len(native.INSTRUCTIONS) < 2, reason="this CPU has but one set of instructions")
@pytest.mark.parametrize(("codec", "out", "columns"), CASES)
@pytest.mark.parametrize("rows", [1, 3, 4, 6])
def test_every_set_of_instructions_gives_bitwise_the_same(codec: str, out: int, columns: int, rows: int) -> None:
    _, codes = _coded(codec, out, columns)
    x = _normal(rows, columns, seed=1)
    first, *others = (native.linear(x, codes, instructions=name) for name in native.INSTRUCTIONS)
    assert all(torch.equal(first, other) for other in others)


@needs_kernels
@pytest.mark.parametrize("activation", [None, *native.ACTIVATIONS])
def test_what_surrounds_a_product_is_what_torch_computes(activation: str | None) -> None:
    coded, codes = _coded("int8", 50, 96)
    x, bias, residual = 3 * _normal(2, 5, 96), _normal(50, seed=1), _normal(2, 5, 50, seed=2)
    weight, offset = _normal(96, seed=3), _normal(96, seed=4)
    y = F.layer_norm(x, (96,), weight, offset, 1e-5) @ coded.decode().T + bias
    y = (y if activation is None else ACTIVATIONS[activation](y)) + residual
    norm = native.norm(weight, offset, 1e-5)
    found = native.linear(x, native.with_bias(codes, bias), norm=norm, activation=activation, residual=residual)
    torch.testing.assert_close(found, y, rtol=1e-3, atol=1e-3)


@needs_kernels
def test_zeros_and_tiny_numbers_stay_finite() -> None:
    for codec in ("int8", "int4"):
        _, codes = _coded(codec, 8, 64)
        assert torch.equal(native.linear(torch.zeros(2, 64), codes), torch.zeros(2, 8))
        assert native.linear(torch.full((1, 64), 1e-44), codes).abs().max() < 1e-35


def test_shapes_without_a_kernel_are_multiplied_all_the_same() -> None:
    for codec in CODECS:
        for columns in (20, 65, 96):
            coded = Coded.encode(codec_named(codec), _normal(9, columns))
            x = _normal(3, columns, seed=1)
            expected = x @ coded.decode().T
            assert (coded.linear(x) - expected).norm() <= 1e-2 * expected.norm()
            assert (coded.codec.linear(coded.parts(), x) - expected).norm() <= 1e-2 * expected.norm()


@needs_kernels
@pytest.mark.parametrize(
    "codec", ["int8", "int4", "int4-row", "int4-g32", "int4-g96", "int4-g128", "int4-g64-zp", "int3"]
)
def test_what_is_kept_as_codes_has_a_kernel(codec: str) -> None:
    for columns in (16, 32, 64, 96, 128, 192, 320):
        coded = Coded.encode(codec_named(codec), _normal(3, columns))
        assert (coded.kernel is not None) == coded.codec.has_kernel(columns)


@needs_kernels
def test_a_copy_multiplies_by_its_own_codes() -> None:
    coded, codes = _coded("int8", 4, 32)
    copy = deepcopy(coded)
    copy.parts()["codes"].zero_()
    assert not copy.linear(_normal(1, 32)).any()
    assert coded.linear(_normal(1, 32)).any()
    assert coded.kernel is codes


def test_codes_whose_kernel_is_missing_are_kept_in_fp32() -> None:
    form = Dense.of(_normal(9, 64), "int4")
    assert form.path == "stored"
    kept = {coded.codec.name for coded in prepared(form).coded().values()}
    assert kept == ({"int4-g64"} if native.AVAILABLE else {"fp32"})
    form.matrix.kernel = None  # as on a CPU without it
    assert {coded.codec.name for coded in prepared(form).coded().values()} == {"fp32"}
    torch.testing.assert_close(prepared(form).dense(), form.dense())


@pytest.fixture(scope="module", params=["int8", "int4"])
def model(request: pytest.FixtureRequest) -> GPT2:
    dense = tiny_model(type(TINY)(**(TINY.__dict__ | {"n_embd": 64, "n_inner": 256})))
    return dense.with_matrices({name: form.recoded(request.param) for name, form in dense.matrices().items()})


@needs_kernels
@torch.inference_mode()
@pytest.mark.parametrize("dtype", KV_CACHE, ids=str)
def test_a_step_is_bitwise_the_same_alone_and_in_any_batch(model: GPT2, dtype: torch.dtype) -> None:
    model = model.prepared("stored")
    texts = torch.randint(TINY.vocab_size, (5, 30), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([1, 20, 7, 13, 2])
    alone = []
    for slot in range(5):
        cache = model.new_cache(1, 40, dtype)
        model(texts[slot : slot + 1, : lengths[slot]], cache)
        alone.append([model.logits(model(texts[slot : slot + 1, [20 + t]], cache)) for t in range(6)])
    cache = model.new_cache(8, 64, dtype)
    places = torch.tensor([6, 0, 3, 1, 7])
    for slot in range(5):
        model(texts[slot : slot + 1, : lengths[slot]], cache, rows=places[slot : slot + 1])
    for t, members in enumerate(([0], [0, 1], [1, 2, 3, 4], [4, 3], [0, 1, 2, 3, 4], [2])):
        logits = model.logits(model(texts[members, 20 + t].unsqueeze(1), cache, rows=places[members]))
        for row, slot in enumerate(members):
            at = int(cache.lengths[places[slot]] - lengths[slot]) - 1
            if at == t:  # it has had the same tokens as alone
                assert torch.equal(logits[row], alone[slot][at][0])


@needs_kernels
@torch.inference_mode()
def test_a_text_is_bitwise_the_same_however_it_is_cut_and_whatever_is_read_beside_it(model: GPT2) -> None:
    model = model.prepared("stored")
    texts = torch.randint(TINY.vocab_size, (3, 24), generator=torch.Generator().manual_seed(0))
    whole = [model(text.unsqueeze(0), model.new_cache(1, 24))[0] for text in texts]
    cache = model.new_cache(4, 24)
    slots = torch.tensor([2, 0, 3])
    for cuts in ([1, 9, 4], [6, 1, 0], [17, 14, 20]):
        counts, before = torch.tensor(cuts), cache.lengths[slots].tolist()
        parts = [text[b : b + n] for text, b, n in zip(texts, before, cuts, strict=True)]
        found = model.packed(torch.cat(parts), cache, slots, counts).split(cuts)
        for hidden, b, n, expected in zip(found, before, cuts, whole, strict=True):
            assert torch.equal(hidden, expected[b : b + n])
    assert cache.lengths[slots].tolist() == [24, 24, 24]
    with pytest.raises(ValueError, match="25 tokens exceed the capacity of 24"):
        model.packed(torch.tensor([1]), cache, slots[:1], torch.tensor([1]))


@torch.inference_mode()
def test_the_kernels_and_torch_agree_on_whole_steps(model: GPT2) -> None:
    texts = torch.randint(TINY.vocab_size, (3, 12), generator=torch.Generator().manual_seed(0))
    ready, exact = model.prepared("stored"), model.prepared("dense")
    caches = [m.new_cache(3, 12) for m in (ready, exact)]
    for chunk in texts.split([5, 1, 1, 4, 1], dim=1):
        found, expected = ready(chunk, caches[0]), exact(chunk, caches[1])
        assert (found - expected).norm() <= STEP * expected.norm()


@torch.inference_mode()
def test_slots_outside_the_cache_are_refused(model: GPT2) -> None:
    cache = model.new_cache(2, 8)
    for slot in (-1, 2):
        with pytest.raises(ValueError, match=r"rows must lie in \[0, 2\), not"):
            model(torch.tensor([[1]]), cache, rows=torch.tensor([slot]))
    with pytest.raises(ValueError, match="rows must be different"):
        model(torch.tensor([[1], [2]]), cache, rows=torch.tensor([1, 1]))
