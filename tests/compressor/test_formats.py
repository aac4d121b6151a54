"""The contract that every format keeps with every codec."""

import pytest
import torch

from compressor.codecs import CODECS
from compressor.formats import FORMATS, Format, Sparse, Spec, from_tensors
from tests.cases import FORMAT_CASES
from tests.tolerances import EXACT


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FORMAT_CASES)
def form(request: pytest.FixtureRequest, codec: str) -> Format:
    return FORMAT_CASES[request.param]().recoded(codec)


def test_every_format_has_a_case() -> None:
    assert {make().kind for make in FORMAT_CASES.values()} == FORMATS.keys()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (0,)])
def test_rows_are_rows_of_the_dense_matrix(form: Format, shape: tuple[int, ...]) -> None:
    ids = torch.randint(form.out_features, shape, generator=torch.Generator().manual_seed(1))
    rows = form.rows(ids)
    assert rows.shape == (*shape, form.in_features)
    torch.testing.assert_close(rows, form.dense()[ids], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("shape", [(), (1,), (9,), (2, 3)])
def test_matmul_is_a_product_with_the_dense_matrix(form: Format, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, form.in_features, generator=torch.Generator().manual_seed(2))
    expected = x @ form.dense().T
    product = form.matmul(x)
    assert product.shape == (*shape, form.out_features)
    assert (product - expected).norm() <= EXACT * expected.norm()


def test_tensors_and_spec_are_the_whole_format(form: Format) -> None:
    again = from_tensors(form.tensors(), type(form.spec()).model_validate_json(form.spec().model_dump_json()))
    assert again.spec() == form.spec()
    assert again.tensors().keys() == form.tensors().keys()
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in form.tensors().items())


def test_num_bytes_is_what_the_tensors_occupy(form: Format) -> None:
    assert form.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in form.tensors().values())


def test_a_missing_unknown_or_misshapen_tensor_is_refused(form: Format) -> None:
    tensors, spec = form.tensors(), form.spec()
    name = next(iter(tensors))
    with pytest.raises(ValueError, match=name.split(".")[0]):
        from_tensors({key: tensor for key, tensor in tensors.items() if key != name}, spec)
    with pytest.raises(ValueError, match="surplus"):
        from_tensors(tensors | {"surplus.values": torch.zeros(1)}, spec)
    with pytest.raises(ValueError, match="must be"):
        from_tensors(tensors | {name: torch.zeros(*tensors[name].shape, 1).to(tensors[name].dtype)}, spec)
    with pytest.raises(ValueError, match="must be"):
        from_tensors(tensors | {name: tensors[name].to(torch.float64)}, spec)


def test_unknown_formats_codecs_and_options_are_refused(form: Format) -> None:
    tensors, spec = form.tensors(), form.spec()
    with pytest.raises(ValueError, match="format must be one of"):
        from_tensors(tensors, spec.model_copy(update={"format": "pickle"}))
    with pytest.raises(ValueError, match="options"):
        from_tensors(tensors, spec.model_copy(update={"options": spec.options | {"surplus": 1}}))
    with pytest.raises(ValueError, match="codec must be one of"):
        from_tensors(tensors, _with_codec(spec, "int1"))


def _with_codec(spec: Spec, codec: str) -> Spec:
    inner = {name: _with_codec(child, codec) for name, child in spec.inner.items()}
    return spec.model_copy(update={"codecs": dict.fromkeys(spec.codecs, codec), "inner": inner})


@pytest.mark.parametrize(
    ("case", "options", "field"),
    [
        ("low_rank", {"rank": 0}, "rank"),
        ("low_rank", {"rank": 21}, "rank"),
        ("low_rank", {"rank": True}, "rank"),
        ("low_rank", {"row_scale": 1}, "row_scale"),
        ("token_mps", {"modes": [2, 2]}, "ranks"),
        ("token_mps", {"modes": [2, 2, 2, -2]}, "modes"),
        ("token_mps", {"ranks": [2, 2, 3, 2, 1]}, "ranks"),
        ("token_mps", {"ranks": [1, 2, 3, 2, 2]}, "ranks"),
        ("token_mps", {"modes": [2, 2, 2, 1]}, "modes"),
        ("tt_matrix", {"ranks": [1, 4, 3]}, "ranks"),
        ("tt_matrix", {"ranks": [2, 4, 3, 1]}, "ranks"),
        ("tt_matrix", {"ranks": [1, 400, 3, 1]}, "ranks"),
        ("tt_matrix", {"ranks": [1, 0, 3, 1]}, "ranks"),
        ("tt_matrix", {"in_modes": [2, 2, 2]}, "in_modes"),
        ("tt_matrix", {"out_modes": [30]}, "out_modes"),
        ("tt_matrix", {"out_modes": [5, 3, True]}, "out_modes"),
        ("tt_matrix", {"permuted": 1}, "permuted"),
        ("sparse", {"kept": 0}, "kept"),
        ("sparse", {"kept": 21}, "kept"),
        ("sparse", {"kept": True}, "kept"),
    ],
)
def test_illegal_options_name_the_field(case: str, options: dict[str, object], field: str) -> None:
    form = FORMAT_CASES[case]()
    with pytest.raises(ValueError, match=f"^{field} "):
        from_tensors(form.tensors(), form.spec().model_copy(update={"options": form.spec().options | options}))


@pytest.mark.parametrize("columns", [[2, 1, 3], [1, 1, 3], [-1, 1, 3], [1, 3, 20]])
def test_columns_that_do_not_ascend_within_the_width_are_refused(columns: list[int]) -> None:
    form = FORMAT_CASES["sparse"]()
    tensors = form.tensors()
    tensors["columns.values"] = tensors["columns.values"].clone()
    tensors["columns.values"][7] = torch.tensor(columns)
    with pytest.raises(ValueError, match=r"^columns must ascend within 0 \.\. 19 in every row"):
        from_tensors(tensors, form.spec())


@pytest.mark.parametrize(("width", "dtype"), [(2**15 - 1, torch.int16), (2**15, torch.int32)])
def test_columns_are_stored_in_as_few_bytes_as_the_width_needs(width: int, dtype: torch.dtype) -> None:
    form = Sparse.of(torch.ones(1, 2), torch.tensor([[width - 1, 0]]), width, "fp32")
    assert form.indices()["columns"].dtype == dtype
    assert form.dense().nonzero().tolist() == [[0, 0], [0, width - 1]]
