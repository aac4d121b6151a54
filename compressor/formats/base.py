"""What every format is: one weight matrix W [out, in], stored in coded tensors and multiplied."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compressor.codecs import Coded, codec_named

Path = Literal["stored", "factors", "dense"]
Shape = tuple[int, int]
Layout = dict[str, tuple[int, ...]]


class Spec(BaseModel):
    """All of a format but its numbers; JSON in an artefact's config.

    Attributes:
        format: a key of FORMATS.
        shape: (out, in).
        codecs: codec name of every coded tensor.
        options: the format's own integers, such as modes and ranks.
        path: how it is multiplied, see `compressor.formats.prepared`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str
    shape: Shape
    codecs: dict[str, str]
    options: dict[str, Any] = {}
    path: Path = "stored"


class Format(nn.Module, ABC):
    """One weight matrix W [out, in]. Formats are never changed; operations return new ones.

    Laws, for every codec (the tolerance is the codec's):
        rows(ids) == dense()[ids]                    [*ids, in]
        matmul(x) == x @ dense().T                   [..., out]; padding never leaks out
        from_tensors(f.tensors(), f.spec()) is bitwise f
        num_bytes is what tensors() occupy
    """

    kind: ClassVar[str]

    def __init__(self, shape: Shape, coded: Mapping[str, Coded], options: Mapping[str, Any], path: Path) -> None:
        """Check the tensors against the layout that `shape` and `options` prescribe.

        Raises:
            ValueError: if an option is illegal or a tensor is missing, unknown or misshapen.
        """
        super().__init__()
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"shape must be two positive integers (out, in), not {list(shape)}")
        self.out_features, self.in_features = shape
        self.options = dict(options)
        self.path = path
        layout = self.layout(shape, options)
        if coded.keys() != layout.keys():
            raise ValueError(f"{self.kind} has the tensors {sorted(layout)}, not {sorted(coded)}")
        for name, expected in layout.items():
            if coded[name].shape != expected:
                raise ValueError(f"{name} must have shape {list(expected)}, not {list(coded[name].shape)}")
            self.add_module(name, coded[name])

    @classmethod
    @abstractmethod
    def layout(cls, shape: Shape, options: Mapping[str, Any]) -> Layout:
        """Return the shape of every coded tensor; raises ValueError for illegal options."""

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """Return dense()[ids] [*ids, in] for integer ids in [0, out)."""

    @abstractmethod
    def matmul(self, x: Tensor) -> Tensor:
        """Return x @ dense().T [..., out] for x [..., in]."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return W [out, in] in fp32."""

    @property
    def shape(self) -> Shape:
        """(out, in)."""
        return self.out_features, self.in_features

    def coded(self) -> dict[str, Coded]:
        """Return the coded tensors by name."""
        return {name: child for name, child in self.named_children() if isinstance(child, Coded)}

    def tensors(self) -> dict[str, Tensor]:
        """Return every stored tensor as "<tensor>.<part>"."""
        return {f"{name}.{part}": t for name, coded in self.coded().items() for part, t in coded.parts().items()}

    @property
    def num_bytes(self) -> int:
        """Bytes that the stored tensors occupy."""
        return sum(coded.num_bytes for coded in self.coded().values())

    def spec(self) -> Spec:
        """Return all that from_tensors needs besides the tensors."""
        codecs = {name: coded.codec.name for name, coded in self.coded().items()}
        return Spec(format=self.kind, shape=self.shape, codecs=codecs, options=self.options, path=self.path)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Spec) -> Self:
        """Return the format that `spec` describes, made of exactly these tensors.

        Raises:
            ValueError: naming the tensor or the option that does not fit.
        """
        layout = cls.layout(spec.shape, spec.options)
        if spec.codecs.keys() != layout.keys():
            raise ValueError(f"codecs must name {sorted(layout)}, not {sorted(spec.codecs)}")
        if unknown := {name.partition(".")[0] for name in tensors} - layout.keys():
            raise ValueError(f"unknown tensors {sorted(unknown)}; {cls.kind} has {sorted(layout)}")
        coded = {name: _coded(name, shape, tensors, spec.codecs[name]) for name, shape in layout.items()}
        return cls(spec.shape, coded, spec.options, spec.path)

    def trainable(self) -> Self:
        """Return a copy whose tensors are float parameters, to be trained; see `compressor.codecs.Latent`."""
        coded = {name: tensor.trainable() for name, tensor in self.coded().items()}
        return type(self)(self.shape, coded, self.options, self.path)

    def sealed(self) -> Self:
        """Return a trained copy as it is stored."""
        coded = {name: tensor.sealed() for name, tensor in self.coded().items()}
        return type(self)(self.shape, coded, self.options, self.path)

    def with_path(self, path: Path) -> Self:
        """Return the same format, to be multiplied another way."""
        return type(self)(self.shape, self.coded(), self.options, path)

    def recoded(self, codec: str) -> Self:
        """Return the same factors, each stored by `codec`."""
        coded = {name: tensor.recoded(codec_named(codec)) for name, tensor in self.coded().items()}
        return type(self)(self.shape, coded, self.options, self.path)


def _coded(name: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor], codec: str) -> Coded:
    prefix = f"{name}."
    parts = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    try:
        return Coded(codec_named(codec), shape, parts)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def blocks(total: int, size: int) -> list[range]:
    """Split range(total) into ranges of at most `size`."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]
