"""What an artefact's config.json and manifest.json say."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from compressor.artifact.layouts import Shape

SCHEMA_VERSION = 2
AS_STORED = "as in the checkpoint"  # the codec of matrices that a method leaves alone


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spec(_Strict):
    """All of a format but its values; JSON in an artefact's config.

    Attributes:
        format: a key of `compressor.artifact.layouts.FORMATS`.
        shape: (out, in).
        codecs: codec name of every coded tensor.
        options: the format's own integers, such as modes and ranks.
        inner: the formats that it is made of, by name.
    """

    format: str
    shape: Shape
    codecs: dict[str, str]
    options: dict[str, Any] = {}
    inner: dict[str, "Spec"] = {}


class Compression(_Strict):
    """What "compression" in config.json says.

    Attributes:
        schema_version: of the artefact's layout.
        vectors: codec of biases and LayerNorm vectors.
        matrices: all but the values of every matrix.
        activations: bits that rows are rounded to where they meet codes in small groups, see
            `compressor.runtime.matrices.BYTE_GROUP`.
    """

    schema_version: Literal[2]
    vectors: str
    matrices: dict[str, Spec]
    activations: Literal[16, 8] = 16


class Bytes(_Strict):
    """Sizes of one component in bytes: stored, in memory while serving, and as dense fp32."""

    disk: int
    resident: int
    dense_fp32: int


class Quality(_Strict):
    """How good the model is on one text, see `compressor.runtime.evaluate`.

    Attributes:
        text: name of the text.
        text_sha256: of its bytes.
        tokens: how many were predicted.
        context, stride: the windows' length and distance in tokens.
        perplexity: exp of the mean negative log-likelihood per token.
        bits_per_byte: of the text.
        dense_perplexity: of the dense model on the same text.
        perplexity_ratio: perplexity / dense_perplexity.
        kl: mean Kullback-Leibler divergence from the dense model in nats per token.
        top1_agreement: share of tokens at which both models' best guess is the same.

    The last four are None where no dense model was at hand.
    """

    text: str
    text_sha256: str
    tokens: int
    context: int
    stride: int
    perplexity: float
    bits_per_byte: float
    dense_perplexity: float | None
    perplexity_ratio: float | None
    kl: float | None
    top1_agreement: float | None


class Golden(_Strict):
    """Known answers, checked wherever the model is loaded.

    Attributes:
        prompt_ids: a short prompt.
        continuation_ids: its greedy continuation, as far as each step wins by 2 * tolerance.
        top_ids, top_logits: the highest logits after the prompt.
        tolerance: how far another CPU's logits may be off.
    """

    prompt_ids: list[int]
    continuation_ids: list[int]
    top_ids: list[int]
    top_logits: list[float]
    tolerance: float


class Source(_Strict):
    """The checkpoint an artefact was made of.

    Attributes:
        id: on the hub, or the folder's name.
        sha256: of its weights' file, as sha256sum prints it; where there are several, of each by name.
    """

    id: str
    sha256: str | dict[str, str]


class Provenance(_Strict):
    """How the artefact was made.

    Attributes:
        source: the checkpoint.
        method: how it was compressed.
        config: every option of the method.
        seed: of whatever is drawn.
        versions: of the libraries.
        build_seconds: how long it took.
        edits: changes to single tokens since, in order (`compressor.vocab`); the quality figures are older.
    """

    source: Source
    method: str
    config: dict[str, Any]
    seed: int
    versions: dict[str, str]
    build_seconds: float
    edits: list[str] = []

    @property
    def command(self) -> str:
        """What makes such an artefact of the same source; texts of the user's own are not named."""
        given = {key: value for key, value in self.config.items() if type(value) in (int, float, str)}
        given |= {"heal_tokens": heal["tokens"]} if "tokens" in (heal := self.config.get("heal") or {}) else {}
        given |= {"budget": given.pop("size_bytes")} if "size_bytes" in given else {}
        given |= {"activations": 8} if "activations" in self.config else {}
        given.pop("calibration", None)
        if self.method == "pretrain":
            given = {}
        chosen = [] if self.method in ("budget", "pretrain") else [f"--method {self.method}"]
        options = [f"--{key.replace('_', '-')} {value}" for key, value in given.items() if value != AS_STORED]
        verb = "pretrain --config FILE --text FILE" if self.method == "pretrain" else f"compress {self.source.id}"
        return " ".join([f"ttgpt {verb}", *chosen, *options, "--out DIR"])


class Manifest(_Strict):
    """manifest.json.

    Attributes:
        digest: sha256 over the names and checksums of the three checked files; the artefact's identity.
        files: sha256 of each checked file, and of tokenizer_config.json where there is one.
        bytes: sizes per component.
        quality: as measured when the artefact was made, so before any edits in `provenance`.
        golden: known answers; of the model as it is now.
        provenance: how it was made.
        seal: sha256 of this file's canonical JSON without the seal.
    """

    digest: str
    files: dict[str, str]
    bytes: dict[str, Bytes]
    quality: Quality
    golden: Golden
    provenance: Provenance
    seal: str = ""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(size.disk for size in self.bytes.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes of all tensors in memory while serving."""
        return sum(size.resident for size in self.bytes.values())

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense model in fp32."""
        return sum(size.dense_fp32 for size in self.bytes.values())
