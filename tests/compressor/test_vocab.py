"""Vocabulary editing: one row changes, every other stored byte stays, and the whole artefact follows."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor import huggingface, stored
from compressor.artifact import folder as artifact
from compressor.artifact.gpt2_config import GPT2Config
from compressor.cli import main
from compressor.formats import Dense, Format, LowRank, Stacked
from compressor.gpt2 import GPT2
from compressor.methods import svd, tensorgpt
from compressor.vocab import ROW_CUTS, add_token, set_token, with_row
from tests.cases import FORMAT_CASES
from tests.conftest import TINY, tiny_model, write_artifact
from tests.tolerances import EXACT, STORE

SMALL = replace(TINY, n_layer=1)
V, D = SMALL.vocab_size, SMALL.n_embd


def trains(table: Tensor, codec: str = "fp16", rank: int = 2) -> Format:
    return tensorgpt.compress(table, tensorgpt.Config(rank=rank, codec=codec))


def random_rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def autoencoder(table: Tensor) -> Format:
    """A low-rank table with every optional vector."""
    basis = torch.linalg.qr(random_rows(8, seed=5).T).Q.T  # [8, D]
    offset = random_rows(1, seed=6)[0]
    scale = torch.linspace(0.5, 2, len(table))
    return LowRank.of((table - offset) @ basis.T, basis, "fp16", row_scale=scale, column_offset=offset)


FORMS: dict[str, Callable[[Tensor], Format]] = {
    "token_mps fp32": lambda table: trains(table, "fp32"),
    "token_mps fp16": trains,
    "token_mps int8": lambda table: trains(table, "int8"),
    "token_mps int4": lambda table: trains(table, "int4"),
    "token_mps, its modes unpadded": lambda table: tensorgpt.compress(
        table[:, :30], tensorgpt.Config(rank=3, padded=False)
    ),
    "dense fp16": lambda table: Dense.of(table, "fp16"),
    "dense int8": lambda table: Dense.of(table, "int8"),
    "dense int3": lambda table: Dense.of(table, "int3-g16-zp"),
    "low_rank bf16": lambda table: svd.compress(table, svd.Config(rank=8, codec="bf16")),
    "low_rank int4": lambda table: svd.compress(table, svd.Config(rank=8, codec="int4")),
    "low_rank with scale and offset": autoencoder,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", [0, 3, 8, 9], ids=lambda row: f"row {row}")
def test_every_other_stored_byte_stays(form: str, row: int) -> None:
    table = FORMS[form](random_rows(9))
    edited = with_row(table, row, random_rows(1, seed=1)[0, : table.in_features])
    assert edited.shape == (max(9, row + 1), table.in_features)
    others = [other for other in range(9) if other != row]
    assert torch.equal(edited.rows(torch.tensor(others)), table.rows(torch.tensor(others)))
    assert edited.spec().options == table.spec().options
    for name, tensor in table.tensors().items():
        is_shared = name.partition(".")[0] in ("right", "column_offset")
        kept = edited.tensors()[name]
        assert torch.equal(kept, tensor) if is_shared else torch.equal(kept[others], tensor[others])


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("low_rank")])
def test_a_row_is_stored_as_if_the_table_had_been_compressed_with_it(form: str) -> None:
    rows = random_rows(9)
    edited = with_row(FORMS[form](rows[:8]), 8, rows[8, : FORMS[form](rows).in_features])
    alone = FORMS[form](rows[8:])
    assert all(torch.equal(edited.tensors()[name][8:], tensor) for name, tensor in alone.tensors().items())
    assert torch.equal(edited.rows(torch.tensor([8])), alone.rows(torch.tensor([0])))


def test_a_train_of_full_rank_holds_any_vector() -> None:
    vector = random_rows(1, seed=2)[0]
    edited = with_row(trains(random_rows(4), "fp32", rank=D), 4, vector)
    assert (edited.rows(torch.tensor([4]))[0] - vector).norm() <= EXACT * vector.norm()


@pytest.mark.parametrize("form", ["low_rank bf16", "low_rank with scale and offset"])
def test_a_low_rank_row_is_the_nearest_that_the_basis_allows(form: str) -> None:
    table = FORMS[form](random_rows(20))
    vector = random_rows(1, seed=3)[0]
    edited = with_row(table, 20, vector)
    coded = table.coded()
    missed = vector - edited.rows(torch.tensor([20]))[0]
    basis = coded["right"].decode()
    assert (basis @ missed).norm() <= STORE["bf16"] * basis.norm() * vector.norm()  # nothing is left along the basis
    if "row_scale" in coded:
        assert edited.coded()["row_scale"].decode()[20] == 1


@pytest.mark.parametrize(("row", "changed"), [(0, 0), (9, 0), (10, 1), (29, 1), (30, 1)])
def test_in_a_stacked_table_only_the_block_of_the_row_changes(row: int, changed: int) -> None:
    blocks = [Dense.of(random_rows(10), "int8"), svd.compress(random_rows(20, 1), svd.Config(rank=8, codec="bf16"))]
    wanted = random_rows(1, seed=9)[0]
    edited = with_row(Stacked.of(blocks), row, wanted)
    assert edited.out_features == max(30, row + 1)
    assert isinstance(edited, Stacked)
    for k, (before, after) in enumerate(zip(blocks, edited.blocks(), strict=True)):
        expected = with_row(before, row - 10 * k, wanted) if k == changed else before
        assert after.tensors().keys() == expected.tensors().keys()
        assert all(torch.equal(after.tensors()[name], tensor) for name, tensor in expected.tensors().items())


@pytest.mark.parametrize("case", FORMAT_CASES)
def test_every_format_is_edited_or_refused(case: str) -> None:
    table = FORMAT_CASES[case]()
    row = table.rows(torch.tensor([0]))[0]
    if table.kind in ROW_CUTS or table.kind == "stacked":
        edited = with_row(table, table.out_features, row)
        assert torch.equal(edited.dense()[:-1], table.dense())
    else:
        with pytest.raises(ValueError, match=f"stored as {table.kind}, whose rows share .* dense, token_mps, low_rank"):
            with_row(table, 0, row)


def test_a_row_scale_whose_numbers_share_a_scale_is_refused() -> None:
    scales = LowRank.of(random_rows(4)[:, :2], random_rows(2), "int8", row_scale=torch.ones(4))
    with pytest.raises(ValueError, match="row_scale is stored as int8"):
        with_row(scales, 1, random_rows(1)[0])


# From here on with whole artefacts.


def model_of_trains(config: GPT2Config = SMALL, *, head: bool = False) -> GPT2:
    model = tiny_model(config)
    table = trains(model.wte.dense())
    untied = {"lm_head": Dense.of(model.wte.dense().flip(0), "int8")} if head else {}
    return model.with_matrices({"wte": table} | untied)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("vocab") / "trains", model_of_trains())


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "trains"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids_of(folder: Path, text: str) -> list[int]:
    return list(stored.read(folder).tokenizer.encode(text).ids)


def json_vector(path: Path, vector: Tensor) -> Path:
    path.write_text(json.dumps(vector.tolist()))
    return path


def check_golden(folder: Path) -> None:
    """The golden values are those of the artefact as it is."""
    loaded = stored.read(folder)
    known, model = loaded.manifest.golden, stored.gpt2(loaded).expanded()
    assert loaded.tokenizer.encode("The old man looked at the sea").ids == known.prompt_ids
    with torch.inference_mode():
        scores = model.logits(model(torch.tensor([known.prompt_ids]))[0, -1])
    assert scores.topk(len(known.top_ids)).values.tolist() == pytest.approx(known.top_logits, abs=1e-3)


def test_set_changes_one_row_and_nothing_else(folder: Path, original: Path, tmp_path: Path) -> None:
    (sea,) = ids_of(folder, " sea")
    vector = 0.3 * random_rows(1)[0]
    edited = set_token(folder, " sea", vector=json_vector(tmp_path / "v.json", vector))
    before, after = load_file(original / artifact.WEIGHTS), load_file(folder / artifact.WEIGHTS)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["wte.cores.values"]
    rows = (before[changed[0]] != after[changed[0]]).any(1).nonzero().flatten().tolist()
    assert rows == [edited.token_id] == [sea]
    loaded = stored.read(folder)
    expected = trains(vector.unsqueeze(0)).rows(torch.tensor([0]))
    assert torch.equal(loaded.matrices["wte"].rows(torch.tensor([sea])), expected)
    assert edited.error == pytest.approx(float((expected - vector).norm() / vector.norm()), rel=1e-4)
    for name in (artifact.CONFIG, artifact.TOKENIZER):
        assert (folder / name).read_bytes() == (original / name).read_bytes()
    check_golden(folder)


def test_the_manifest_says_what_was_edited_and_keeps_the_older_figures(folder: Path, tmp_path: Path) -> None:
    before = stored.read(folder).manifest
    set_token(folder, " sea", like="The old man")
    edited = add_token(folder, " \u201cZorbl\u201d", vector=json_vector(tmp_path / "v.json", random_rows(1)[0]))
    after = stored.read(folder).manifest
    assert after == edited.manifest
    assert before.digest != after.digest
    assert after.quality == before.quality
    assert after.provenance.model_copy(update={"edits": []}) == before.provenance
    first, second = after.provenance.edits
    assert first == f'set " sea" ({ids_of(folder, " sea")[0]}) like "The old man"'
    assert second.startswith(f'add " \u201cZorbl\u201d" ({V}) from a vector file with sha256 ')
    assert after.bytes["wte"].disk == before.bytes["wte"].disk * (V + 1) // V
    check_golden(folder)


def test_both_kinds_of_vector_files_are_the_same(folder: Path, tmp_path: Path) -> None:
    vector = random_rows(1)[0]
    save_file({"vector": vector}, tmp_path / "v.safetensors")
    twin = Path(shutil.copytree(folder, tmp_path / "twin"))
    one = set_token(folder, " sea", vector=tmp_path / "v.safetensors")
    other = set_token(twin, " sea", vector=json_vector(tmp_path / "v.json", vector))
    assert one.manifest.digest == other.manifest.digest


def test_like_one_token_is_its_row_bit_for_bit(folder: Path) -> None:
    edited = add_token(folder, " Zorbl", like=" sea")
    table = stored.read(folder).matrices["wte"]
    assert edited.error == 0
    new, old = (part for part in table.rows(torch.tensor([edited.token_id, *ids_of(folder, " sea")])))
    assert torch.equal(new, old)


def test_like_several_tokens_is_the_train_of_their_mean(folder: Path) -> None:
    pieces = ids_of(folder, " Zorbl")
    assert len(pieces) > 1
    mean = stored.read(folder).matrices["wte"].rows(torch.tensor(pieces)).double().mean(0, keepdim=True)
    edited = add_token(folder, " Zorbl", like=" Zorbl")
    row = stored.read(folder).matrices["wte"].rows(torch.tensor([edited.token_id]))
    assert torch.equal(row, trains(mean).rows(torch.tensor([0])))


@pytest.mark.parametrize("token", ["Zürich", " 漢🙂 two", "Ġq", "a\\z(ü)[é]"])
def test_an_added_token_is_one_id_and_its_text_comes_back(folder: Path, token: str) -> None:
    before = stored.read(folder).tokenizer
    edited = add_token(folder, token, like=" sea")
    loaded = stored.read(folder)
    assert (edited.token_id, loaded.config.vocab_size) == (V, V + 1)
    for text in (token, f"The old{token} and naïve {token}{token}"):
        ids = loaded.tokenizer.encode(text).ids
        assert ids.count(V) == text.count(token)
        assert loaded.tokenizer.decode(ids) == text
    plain = "The old man, naïve 漢字 🙂"
    assert loaded.tokenizer.encode(plain).ids == before.encode(plain).ids
    assert loaded.tokenizer.decode(before.encode(plain).ids) == plain


def test_several_tokens_are_added_one_after_the_other(folder: Path) -> None:
    tokens = ["Zürich", "Zü", "Zürichsee"]  # each of them contains another
    assert [add_token(folder, token, like=" sea").token_id for token in tokens] == [V, V + 1, V + 2]
    tokenizer = stored.read(folder).tokenizer
    ids = [V + 2, *tokenizer.encode(" by ").ids, V, *tokenizer.encode(" ").ids, V + 1]
    assert tokenizer.encode("Zürichsee by Zürich Zü").ids == ids
    assert tokenizer.decode(ids) == "Zürichsee by Zürich Zü"
    set_token(folder, "Zü", like="man")
    assert ids_of(folder, "Zü") == [V + 1]


def test_an_unused_row_is_taken_before_one_is_appended(tmp_path: Path) -> None:
    padded = replace(SMALL, vocab_size=V + 1)
    folder = write_artifact(tmp_path / "padded", model_of_trains(padded))
    before = stored.read(folder).matrices["wte"].rows(torch.arange(V))
    sizes = []
    for row, token in enumerate([" Zorbl", " Quux"]):
        assert add_token(folder, token, like=" sea").token_id == V + row
        sizes.append(stored.read(folder).config.vocab_size)
    assert sizes == [V + 1, V + 2]
    assert torch.equal(stored.read(folder).matrices["wte"].rows(torch.arange(V)), before)


def test_an_untied_head_follows(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "untied", model_of_trains(head=True))
    (sea,) = ids_of(folder, " sea")
    vector = random_rows(1)[0]
    add_token(folder, " Zorbl", like=" sea")
    set_token(folder, " man", vector=json_vector(tmp_path / "v.json", vector))
    loaded = stored.read(folder)
    (man,) = ids_of(folder, " man")
    head = loaded.matrices["lm_head"]
    assert isinstance(head, Dense)
    assert head.out_features == V + 1
    assert torch.equal(head.rows(torch.tensor([V])), head.rows(torch.tensor([sea])))  # the head's own row of " sea"
    assert torch.equal(head.rows(torch.tensor([man])), Dense.of(vector.unsqueeze(0), "int8").dense())


def test_a_tied_head_scores_a_copied_token_as_its_model(folder: Path) -> None:
    add_token(folder, " Zorbl", like=" sea")
    model = stored.gpt2(stored.read(folder)).expanded()
    (sea,) = ids_of(folder, " sea")
    with torch.inference_mode():
        scores = model.logits(model(torch.tensor([[5, V, 7]])))
    torch.testing.assert_close(scores[..., V], scores[..., sea], rtol=EXACT, atol=EXACT)


def test_other_commands_take_an_edited_artefact(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "story.txt"
    text.write_text("The Zürich tide was out. " * 5)
    assert run("vocab", "add", folder, "--token", "Zürich", "--like", " sea") == 0
    assert f'"Zürich" is token {V}' in capsys.readouterr().out
    assert run("vocab", "set", folder, "--token", " tide", "--like", " sea") == 0
    assert run("evaluate", folder, "--text", text, "--json") == 0
    assert run("generate", folder, "--prompt", "In Zürich", "--max-new-tokens", "3") == 0
    capsys.readouterr()
    assert run("inspect", folder, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["edits"]) == 2
    assert run("export", folder, "--out", tmp_path / "dense") == 0
    checkpoint = huggingface.load(str(tmp_path / "dense"))
    assert checkpoint.model.config == stored.read(folder).config
    assert checkpoint.tokenizer_json == (folder / artifact.TOKENIZER).read_bytes()


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_code:
        main([str(argument) for argument in arguments])
    return int(exit_code.value.code or 0)


LIKE = ["--like", " sea"]
TOKEN = ["--token", " Zorbl"]
MISTAKES = {
    "unknown token": (["set", "--token", " Zorbl", *LIKE], "token: ' Zorbl' is not one token but 3"),
    "existing token": (["add", "--token", " man", *LIKE], "token: ' man' is token"),
    "special token": (["add", "--token", "<|endoftext|>", *LIKE], "is token 0 already"),
    "spelled like another token": (["add", "--token", "Ġsea", *LIKE], "is how the tokenizer itself spells token"),
    "empty token": (["add", "--token", "", *LIKE], "token: must not be empty"),
    "surrogate": (["add", "--token", "a\udcff", *LIKE], "token: must be valid Unicode"),
    "control character": (["add", "--token", "a\x1b", *LIKE], "token: must have no control characters, not 'a\\x1b'"),
    "line feed": (["set", "--token", "\n", *LIKE], "token: must have no control characters"),
    "long token": (["add", "--token", "é" * 129, *LIKE], "token: must have at most 256 bytes of UTF-8, not 258"),
    "empty like": (["add", *TOKEN, "--like", ""], "like: must not be empty"),
    "surrogate like": (["add", *TOKEN, "--like", "\udcff"], "like: must be valid Unicode"),
    "neither": (["add", *TOKEN], "exactly one of --like and --vector"),
    "both": (["set", "--token", " man", *LIKE, "--vector", "{tmp}/good.json"], "exactly one of --like and --vector"),
    "no token": (["add", *LIKE], "--token"),
    "no file": (["add", *TOKEN, "--vector", "{tmp}/none"], "vector: cannot read"),
    "folder": (["add", *TOKEN, "--vector", "{tmp}"], "vector: cannot read"),
    "short": (["add", *TOKEN, "--vector", "{tmp}/short.json"], "vector: must have the shape [32], not [31]"),
    "no command": (["remove", *TOKEN], "remove"),
}
FILES: dict[str, tuple[bytes, str]] = {
    "not finite": (json.dumps([float("nan")] * D).encode(), "finite"),
    "beyond fp32": (json.dumps([1e300] * D).encode(), "finite"),
    "integers beyond floats": (json.dumps([10**400] * D).encode(), "finite"),
    "too large for the table": (json.dumps([1e9] * D).encode(), "wte: the vector's norm must be at most"),
    "true": (json.dumps([True] * D).encode(), "must be a JSON list of numbers"),
    "nested": (json.dumps([[0.0] * D]).encode(), "must be a JSON list of numbers"),
    "object": (b'{"vector": [1]}', "must be a JSON list of numbers"),
    "empty": (b"", "neither a safetensors file nor JSON"),
    "binary": (bytes(range(256)), "neither a safetensors file nor JSON"),
    "deep": (b"[" * 100_000, "neither a safetensors file nor JSON"),
    "damaged safetensors": (b"\x10" + bytes(7) + b"{" * 16, "is not a safetensors file"),
}
TENSORS = {
    "other name": ({"row": torch.ones(D)}, "must be one tensor called 'vector', not ['row']"),
    "two tensors": ({"row": torch.ones(D), "vector": torch.ones(D)}, "not ['row', 'vector']"),
    "integers": ({"vector": torch.ones(D, dtype=torch.int64)}, "must hold floating-point numbers"),
    "matrix": ({"vector": torch.ones(1, D)}, "must have the shape [32], not [1, 32]"),
    "infinite": ({"vector": torch.full((D,), torch.inf)}, "finite"),
}


def check_refused(folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    assert run("vocab", arguments[0], folder, *arguments[1:]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_leaves_the_artefact_alone(
    case: str, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_vector(tmp_path / "good.json", torch.ones(D))
    json_vector(tmp_path / "short.json", torch.ones(D - 1))
    arguments, message = MISTAKES[case]
    check_refused(original, [argument.replace("{tmp}", str(tmp_path)) for argument in arguments], message, capsys)


@pytest.mark.parametrize("case", [*FILES, *TENSORS])
def test_a_bad_vector_leaves_the_artefact_alone(
    case: str, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vector"
    if case in FILES:
        data, message = FILES[case]
        path.write_bytes(data)
    else:
        tensors, message = TENSORS[case]
        save_file(tensors, path)
    check_refused(original, ["set", "--token", " man", "--vector", str(path)], message, capsys)


def test_a_damaged_artefact_stays_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / artifact.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    check_refused(folder, ["add", *TOKEN, *LIKE], "model.safetensors: sha256: does not match", capsys)
