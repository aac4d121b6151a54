"""transformers opens an artefact by itself, and computes what a server computes, in as much memory."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline

from compressor import stored
from compressor.artifact import folder as artifact
from compressor.errors import ArtifactError
from compressor.formats import Dense, LowRank
from compressor.gpt2 import GPT2
from compressor.huggingface.auto import TTGPTCache, TTGPTConfig, TTGPTForCausalLM
from compressor.runtime.evaluate import hidden_states
from compressor.runtime.generate import generate
from compressor.runtime.load import load
from compressor.runtime.model import Model
from tests.conftest import TINY, tiny_model, write_artifact

RANDOM = torch.Generator().manual_seed(0)
IDS = torch.randint(1, TINY.vocab_size, (3, 20), generator=RANDOM)
LENGTHS = (20, 1, 13)  # of the rows of a batch with padding


def _compressed() -> GPT2:
    """Return a model whose matrices are of several formats and codecs."""
    model = tiny_model()
    matrices = {name: Dense.of(form.dense(), "int8") for name, form in model.matrices().items()}
    for name, form in model.matrices().items():
        if name.endswith("c_fc"):
            u, s, v = torch.linalg.svd(form.dense(), full_matrices=False)
            matrices[name] = LowRank.of(u[:, :16] * s[:16], v[:16], "fp32")  # type: ignore[assignment]
    return model.with_matrices(matrices)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("artefact") / "tiny", _compressed())


@pytest.fixture(scope="module")
def model(folder: Path) -> TTGPTForCausalLM:
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(opened, TTGPTForCausalLM)
    return opened


@pytest.fixture(scope="module")
def served(folder: Path) -> Model:
    return load(folder)[1]


def _logits(served: Model, ids: Tensor) -> Tensor:
    return torch.stack([torch.from_numpy(served.logits(hidden_states(served, row.numpy()))) for row in ids])


def _continued(served: Model, ids: Tensor, tokens: int) -> Tensor:
    return torch.from_numpy(generate(served, ids.numpy(), tokens, temperature=0.0))


def test_a_config_a_tokenizer_and_a_model_open_without_a_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        opened = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")
    assert not caplog.records
    assert isinstance(config, TTGPTConfig)
    assert config.eos_token_id == config.bos_token_id == config.pad_token_id == tokenizer.eos_token_id == 0
    assert (config.hidden_size, config.num_hidden_layers) == (TINY.n_embd, TINY.n_layer)
    assert tokenizer.backend_tokenizer.to_str() == stored.read(folder).tokenizer.to_str()
    assert (opened.device, opened.dtype, opened.training) == (torch.device("cpu"), torch.float32, False)


ORDERS = {
    "ours first": "import compressor.huggingface; from transformers import AutoModelForCausalLM",
    "theirs first": "from transformers import AutoModelForCausalLM; import compressor.huggingface",
    "asked for first": "import importlib.util as u; import compressor.huggingface; u.find_spec('transformers');"
    " from transformers import AutoModelForCausalLM",
    "amid its imports": "from transformers.generation import GenerationMixin; import compressor.huggingface;"
    " from transformers import AutoModelForCausalLM",
    "a part of it": "import compressor.huggingface; from transformers.models.auto.modeling_auto import"
    " AutoModelForCausalLM",
}


@pytest.mark.parametrize("order", ORDERS)
def test_both_may_be_imported_in_any_order(order: str, folder: Path) -> None:
    code = f"import sys; {ORDERS[order]}; print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, folder], capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("TTGPTForCausalLM\n", "")


def test_logits_are_those_of_a_server(model: TTGPTForCausalLM, served: Model) -> None:
    with torch.inference_mode():
        expected = _logits(served, IDS)
        assert torch.equal(model(IDS).logits, expected)
        assert torch.equal(model(IDS, logits_to_keep=2).logits, expected[:, -2:])
        assert torch.equal(model(IDS, logits_to_keep=torch.tensor([0, 5])).logits, expected[:, [0, 5]])
        assert torch.equal(model(IDS, return_dict=False)[0], expected)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str, use_cache: bool, model: TTGPTForCausalLM) -> None:
    mask = torch.zeros(3, 20, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        mask[row, 20 - length :] = 1
    mask = mask if side == "left" else mask.flip(1)
    logits = model(IDS, attention_mask=mask, use_cache=use_cache).logits
    for row in range(3):
        real = mask[row].bool()
        alone = model(IDS[row : row + 1, real], use_cache=use_cache).logits
        assert torch.equal(logits[row, real], alone[0])


def test_a_text_read_in_pieces_is_the_text(model: TTGPTForCausalLM) -> None:
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[1, :7] = mask[2, :3] = 0
    whole = model(IDS, attention_mask=mask, use_cache=True)
    cache: Any = DynamicCache()  # empty, as some callers begin
    pieces = []
    for end in (5, 10, 11, 20):
        start = cache.get_seq_length()
        step = model(IDS[:, start:end], attention_mask=mask[:, :end], cache=cache)
        pieces.append(step.logits)
        cache = step.cache
    assert cache.get_seq_length() == 20
    real = mask.bool()
    assert torch.equal(torch.cat(pieces, dim=1)[real], whole.logits[real])


def test_a_cache_is_cut_and_chosen_from(model: TTGPTForCausalLM) -> None:
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[1, :4] = 0
    more = torch.ones(3, 1, dtype=torch.int64)
    cache = model(IDS[:, :10], attention_mask=mask, use_cache=True).cache
    expected = model(IDS[:, 10:11], attention_mask=torch.cat([mask, more], dim=1), cache=cache).logits
    cache.crop(-1)
    assert (cache.get_seq_length(), cache.get_max_length(), cache.batch_size) == (10, TINY.n_positions, 3)
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    order = [2, 0, 1]
    again = model(IDS[order, 10:11], attention_mask=torch.cat([mask[order], more], dim=1), past_key_values=cache)
    assert torch.equal(again.logits, expected[order])
    again.cache.batch_repeat_interleave(2)
    assert again.cache.batch_size == 6
    with pytest.raises(ValueError, match="tokens_to_remove must be at most 0, not 1"):
        again.cache.crop(1)
    again.cache.reset()
    assert not again.cache.kv.lengths.any()


def test_the_loss_is_the_cross_entropy_of_the_next_tokens(model: TTGPTForCausalLM) -> None:
    labels = IDS.clone()
    labels[0, 7] = -100
    found = model(IDS, labels=labels)
    expected = F.cross_entropy(found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(found.loss, expected)


def test_greedy_text_is_that_of_a_server(model: TTGPTForCausalLM, served: Model) -> None:
    for ids in IDS[:, :8].split(1):
        expected = _continued(served, ids, 30)
        for use_cache in (True, False):
            found = model.generate(ids, max_new_tokens=30, do_sample=False, use_cache=use_cache, eos_token_id=None)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_beams_are_the_same_with_and_without_a_cache(options: dict[str, Any], model: TTGPTForCausalLM) -> None:
    found = [
        model.generate(IDS[:2, :8], max_new_tokens=12, do_sample=False, use_cache=use_cache, **options)
        for use_cache in (True, False)
    ]
    assert torch.equal(*found)


def test_a_pipeline_continues_a_batch_as_each_text_alone(folder: Path, served: Model) -> None:
    write = pipeline("text-generation", model=str(folder))
    texts = ["It was the old man's boat", "I", "The tide was out, and the boats leaned upon the hard"]
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "return_full_text": False}
    batch = [found[0]["generated_text"] for found in write(texts, batch_size=3, **options)]
    assert batch == [write(text, **options)[0]["generated_text"] for text in texts]
    tokenizer = stored.read(folder).tokenizer
    for text, found in zip(texts, batch, strict=True):
        ids = torch.tensor([tokenizer.encode(text).ids])
        assert tokenizer.decode(_continued(served, ids, 10)[0, ids.shape[1] :].tolist()) == found


def test_it_holds_what_a_server_holds(folder: Path, model: TTGPTForCausalLM, served: Model) -> None:
    manifest = stored.read(folder).manifest
    assert sum(model.decoder.num_bytes.values()) == sum(served.num_bytes.values()) == manifest.resident_bytes
    assert not sum(tensor.nbytes for tensor in model.parameters())
    assert manifest.resident_bytes < manifest.dense_bytes / 2


@pytest.mark.parametrize("file", artifact.CHECKED)
def test_a_changed_artefact_is_refused_by_name(file: str, tmp_path: Path) -> None:
    made = write_artifact(tmp_path / "made", tiny_model())
    data = bytearray((made / file).read_bytes())
    place = data.rindex(b"4") if file != artifact.WEIGHTS else len(data) - 1
    data[place] ^= 1
    (made / file).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"^{file}: sha256: does not match the manifest"):
        AutoModelForCausalLM.from_pretrained(made)
    (made / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"^manifest\.json: is missing"):
        AutoModelForCausalLM.from_pretrained(made)


def test_code_in_an_artefact_is_not_run(tmp_path: Path) -> None:
    made = write_artifact(tmp_path / "made", tiny_model())
    config = json.loads((made / "config.json").read_text())
    map_ = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    (made / "config.json").write_text(json.dumps(config | {"auto_map": map_}))
    (made / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'touched')!r}).touch()")
    AutoTokenizer.from_pretrained(made)
    with pytest.raises(ArtifactError, match=r"^config\.json: sha256"):
        AutoModelForCausalLM.from_pretrained(made)
    assert not (tmp_path / "touched").exists()


REFUSED: dict[str, dict[str, Any]] = {
    "dtype must be float32 or auto, not torch.float16": {"dtype": torch.float16},
    "dtype must be float32 or auto, not bfloat16": {"torch_dtype": "bfloat16"},
    "device_map must be cpu or auto, not 'cuda'": {"device_map": "cuda"},
    "state_dict must be left out": {"state_dict": {}},
    "n_head must be 4, as the artefact was made, not 8": {"n_head": 8},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_change_the_values_is_refused(message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(folder, **REFUSED[message])


CALLS: dict[str, dict[str, Any]] = {
    "output_attentions has no meaning": {"output_attentions": True},
    "token_type_ids has no meaning": {"token_type_ids": IDS},
    r"attention_mask must have shape \[3, 20\], not \[3, 19\]": {"attention_mask": torch.ones(3, 19)},
    "position_ids must be those": {"position_ids": torch.arange(1, 21)},
}


@pytest.mark.parametrize("message", CALLS)
def test_what_the_decoder_cannot_do_is_refused(message: str, model: TTGPTForCausalLM) -> None:
    with pytest.raises(ValueError, match=message):
        model(IDS, **CALLS[message])
    assert model(IDS, position_ids=torch.arange(20), output_attentions=False).logits.shape == (3, 20, TINY.vocab_size)


def test_a_cache_of_another_model_and_a_text_beyond_the_context_are_refused(model: TTGPTForCausalLM) -> None:
    foreign: Any = DynamicCache()
    foreign.update(torch.ones(3, 4, 5, 8), torch.ones(3, 4, 5, 8), 0)
    with pytest.raises(ValueError, match="cache must be one that this model returned, not a DynamicCache"):
        model(IDS, cache=foreign)
    cache = model(IDS.repeat(1, 3), use_cache=True).cache
    assert isinstance(cache, TTGPTCache)
    with pytest.raises(ValueError, match="80 tokens exceed the capacity of 64"):
        model(IDS, cache=cache)


def test_it_is_neither_made_of_a_config_nor_saved(folder: Path, model: TTGPTForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is read by from_pretrained"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with pytest.raises(ValueError, match="copy its folder, or write a dense checkpoint by ttgpt export"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
