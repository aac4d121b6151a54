"""An artefact as a model of transformers: AutoConfig, AutoModelForCausalLM, AutoTokenizer and pipelines open it.

`import compressor.huggingface` brings these classes as soon as transformers is imported, see `registration`. No code
comes out of the artefact's folder, and its matrices stay as they are stored: what is in memory is what a server holds.
"""

from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationMixin, PreTrainedModel
from transformers import GPT2Config as PeerConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from compressor.artifact import folder as artifact
from compressor.artifact.gpt2_config import GPT2Config
from compressor.runtime.kv import Cache, pages_for
from compressor.runtime.load import load
from compressor.runtime.model import Model

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
FILES = [*artifact.CHECKED, artifact.TOKENIZER_CONFIG, artifact.MANIFEST]
CPU = (None, "auto", "cpu", torch.device("cpu"), {"": "cpu"}, {"": torch.device("cpu")})
FP32 = (None, "auto", "float32", torch.float32)


class TTGPTConfig(PeerConfig):
    """config.json of an artefact: GPT-2's hyper-parameters, and how every matrix is stored."""

    model_type = "ttgpt"
    compression: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.bos_token_id = self.pad_token_id = self.eos_token_id  # type: ignore[assignment]
        self.tie_word_embeddings = False  # the decoder ties its own, which transformers need not do again
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]


class TTGPTCache(transformers.Cache):
    """The decoder's KV cache as transformers handles it: positions are those of a batch whose rows are padded.

    Attributes:
        kv: keys and values of what is no padding, a slot per row.
        real: what is no padding [B, T].
    """

    def __init__(self, config: GPT2Config, rows: int) -> None:
        super().__init__(layers=[])
        self.config = config
        self.kv = Cache(config, rows, config.n_positions)
        self.real = torch.empty(rows, 0, dtype=torch.bool)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.real.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.kv.capacity

    @property
    def batch_size(self) -> int:
        return self.kv.slots

    def reset(self) -> None:
        self._keep(self.real[:, :0])

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, of which there are -`tokens_to_remove`, as in transformers' caches."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be at most 0, not {tokens_to_remove}")
        self._keep(self.real[:, : max(0, self.real.shape[1] + tokens_to_remove)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(self.kv.slots).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        old, used = self.kv, pages_for(int(self.kv.lengths.max()))
        self.kv = Cache(self.config, len(indices), old.capacity)
        new, chosen = self.kv.table[:, :used], old.table[indices.numpy(), :used]
        self.kv.keys[new] = old.keys[chosen]
        self.kv.values[new] = old.values[chosen]
        self._keep(self.real[indices])

    def _keep(self, real: Tensor) -> None:
        self.real = real
        self.kv.lengths[:] = real.sum(1).numpy()


class TTGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder of an artefact, not for training: its values are codes.

    Attributes:
        decoder: as a server has it in memory.
    """

    config_class = TTGPTConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"

    def __init__(self, config: TTGPTConfig, decoder: Model | None = None) -> None:
        if decoder is None:
            raise ValueError("an artefact's model is read by from_pretrained; ttgpt compress makes one")
        super().__init__(config)
        self.decoder = decoder
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # whose device and dtype transformers asks for
        self.eval()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *args: Any,
        config: TTGPTConfig | None = None,
        **options: Any,
    ) -> "TTGPTForCausalLM":
        """Return the model of an artefact, every byte of which was verified.

        Args:
            pretrained_model_name_or_path: the artefact's folder, or its id on the hub.
            *args: none.
            config: what config.json says.
            **options: of transformers; those of the hub are obeyed, those that would change the values refused.

        Raises:
            ArtifactError: naming the file and the field that is missing, damaged, unknown or misshapen.
            ValueError: if a dtype, a device or a config is asked for that is not the artefact's.
        """
        _check_options(options)
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            given = {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}
            name = str(pretrained_model_name_or_path)
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES, **given))
        folder = folder / (options.get("subfolder") or "")
        decoder = load(folder)[1]
        config = TTGPTConfig.from_pretrained(folder) if config is None else config
        for field in fields(GPT2Config):
            stored, asked = getattr(decoder.config, field.name), getattr(config, field.name)
            if stored != asked:
                raise ValueError(f"{field.name} must be {stored!r}, as the artefact was made, not {asked!r}")
        return cls(config, decoder)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **options: Any) -> None:
        """Refuse: what is in memory may be decoded, and has no checksums; raises ValueError."""
        raise ValueError(
            f"save_directory: an artefact is not saved from memory to {save_directory}; copy its folder, or write a "
            "dense checkpoint by ttgpt export"
        )

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: transformers.Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Return the logits [B, T, V], and the loss and the cache where they are asked for.

        Args:
            input_ids: new tokens [B, T].
            attention_mask: 0 for padding, on whatever side, of all tokens so far [B, cached + T]; it has no position.
            cache: what came before, as it was returned, or an empty cache of transformers; also as past_key_values.
            labels: what should have been predicted [B, T], one place behind; -100 counts for nothing.
            use_cache: whether to return a cache.
            logits_to_keep: of how many last tokens, or of which, logits are made; 0 for all.
            return_dict: False for a tuple.
            **options: others of transformers, which must be unset, because they would change nothing here;
                position_ids may be those that the attention mask gives.

        Raises:
            ValueError: if an option is set that has no meaning here, or the texts outgrow the context.
        """
        older, position_ids = options.pop("past_key_values", None), options.pop("position_ids", None)
        cache = older if cache is None else cache
        _check_unset(options)
        past = self._past(cache, len(input_ids))
        real = _new_tokens(input_ids, attention_mask, past)
        _check_positions(position_ids, real, past)
        hidden = self._hidden(input_ids, real, past)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = torch.from_numpy(self.decoder.logits(hidden[:, kept].numpy()))  # [B, kept, V]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        kept_cache = past if use_cache or cache is not None else None
        output = CausalLMOutputWithPast(loss=loss, logits=logits, cache=kept_cache)
        return output.to_tuple() if return_dict is False else output

    def _past(self, cache: transformers.Cache | None, rows: int) -> TTGPTCache:
        if isinstance(cache, TTGPTCache):
            return cache
        if cache is not None and cache.get_seq_length():
            raise ValueError(f"cache must be one that this model returned, not a {type(cache).__name__}")
        return TTGPTCache(self.decoder.config, rows)

    def _hidden(self, ids: Tensor, real: Tensor, past: TTGPTCache) -> Tensor:
        """Return the hidden states [B, T, D], zeros for padding."""
        counts = real.sum(1).numpy()
        read = self.decoder.read(ids[real].numpy(), past.kv, np.arange(len(ids)), counts, hidden=True)
        past.real = torch.cat([past.real, real], dim=1)
        hidden = torch.zeros(*ids.shape, self.decoder.config.n_embd)
        hidden[real] = torch.from_numpy(read.hidden)
        return hidden


def _new_tokens(ids: Tensor, mask: Tensor | None, past: TTGPTCache) -> Tensor:
    """Return which of the new tokens are no padding [B, T]."""
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    cached = past.get_seq_length()
    expected = [ids.shape[0], cached + ids.shape[1]]
    if list(mask.shape) != expected:
        raise ValueError(f"attention_mask must have shape {expected}, not {list(mask.shape)}")
    return mask[:, cached:].bool()


def _check_positions(positions: Tensor | None, real: Tensor, past: TTGPTCache) -> None:
    """Refuse positions other than how many tokens came before."""
    before = torch.from_numpy(past.kv.lengths).unsqueeze(1)  # [B, 1]
    expected = before + real.cumsum(1) - 1  # [B, T]
    if positions is not None and not torch.equal(positions.expand_as(expected)[real], expected[real]):
        raise ValueError("position_ids must be those that attention_mask gives; leave them out")


def _check_unset(options: dict[str, Any]) -> None:
    """Refuse an option of `forward` that would be passed over."""
    if wrong := [name for name, value in options.items() if value is not None and value is not False]:
        raise ValueError(f"{wrong[0]} has no meaning for an artefact's model; leave it out")


def _check_options(options: dict[str, Any]) -> None:
    """Refuse an option of `from_pretrained` that would change the artefact's values."""
    for name in ("dtype", "torch_dtype"):
        if (dtype := options.get(name)) not in FP32:
            raise ValueError(f"{name} must be float32 or auto, not {dtype}: an artefact's matrices have codecs")
    if (device := options.get("device_map")) not in CPU:
        raise ValueError(f"device_map must be cpu or auto, not {device!r}: an artefact runs on the CPU")
    for name in ("quantization_config", "state_dict", "gguf_file"):
        if options.get(name) is not None:
            raise ValueError(f"{name} must be left out: an artefact's values are its own")


def register() -> None:
    """Make transformers know what model_type "ttgpt" in a config.json is."""
    AutoConfig.register(TTGPTConfig.model_type, TTGPTConfig, exist_ok=True)
    AutoModelForCausalLM.register(TTGPTConfig, TTGPTForCausalLM, exist_ok=True)
    AutoTokenizer.register(TTGPTConfig, fast_tokenizer_class=transformers.PreTrainedTokenizerFast, exist_ok=True)
