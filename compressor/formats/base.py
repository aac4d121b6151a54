"""What every format is: one weight matrix W [out, in], stored in coded tensors and multiplied."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.artifact.layouts import INDEX_PART, Part, Shape, format_layout
from compressor.artifact.manifest import Spec
from compressor.codecs import Coded, codec_named
from compressor.runtime._decoder import Matrix
from compressor.runtime.trains import matrix_of
from compressor.tensors import DTYPES, array, check_part

CutRow = Callable[["Format"], Mapping[str, Mapping[str, Tensor]]]
NONE: Mapping[str, Any] = MappingProxyType({})


class Format(nn.Module, ABC):
    """One weight matrix W [out, in]. Formats are never changed; operations return new ones.

    Laws, for every codec (the tolerance is the codec's):
        rows(ids) == dense()[ids]                    [*ids, in]
        matmul(x) == x @ dense().T                   [..., out]; padding never leaks out
        from_tensors(f.tensors(), f.spec()) is bitwise f
        num_bytes is what tensors() occupy

    A format may be made of others (`inner`).
    """

    kind: ClassVar[str]
    trains_in_bf16: ClassVar[bool] = True  # whether its products may be of bf16 while it is trained

    def __init__(
        self,
        shape: Shape,
        coded: Mapping[str, Coded],
        options: Mapping[str, Any],
        *,
        inner: Mapping[str, "Format"] = NONE,
        indices: Mapping[str, Tensor] = NONE,
    ) -> None:
        """Check the tensors against the layout that `shape` and `options` prescribe.

        Args:
            shape: (out, in).
            coded: every tensor that `format_layout` names.
            options: the format's own.
            inner: the formats it is made of.
            indices: every index tensor that it names; integers, which no codec touches.

        Raises:
            ValueError: if an option is illegal or a tensor is missing, unknown or misshapen.
        """
        super().__init__()
        layout = format_layout(self.kind, shape, options, {name: form.shape for name, form in inner.items()})
        self.out_features, self.in_features = shape
        self.options = dict(options)
        if coded.keys() != layout.coded.keys():
            raise ValueError(f"{self.kind} has the tensors {sorted(layout.coded)}, not {sorted(coded)}")
        for name, expected in layout.coded.items():
            if coded[name].shape != expected:
                raise ValueError(f"{name} must have shape {list(expected)}, not {list(coded[name].shape)}")
            self.add_module(name, coded[name])
        for name, form in inner.items():
            self.add_module(name, form)
        if indices.keys() != layout.indices.keys():
            raise ValueError(f"{self.kind} has the index tensors {sorted(layout.indices)}, not {sorted(indices)}")
        for name, tensor in indices.items():
            check_part(name, tensor, layout.indices[name])
            self.register_buffer(name, tensor)

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """Return dense()[ids] [*ids, in] for integer ids in [0, out)."""

    def matmul(self, x: Tensor) -> Tensor:
        """Return x @ dense().T [..., out] for x [..., in]."""
        return F.linear(x, self.dense().to(x.dtype))

    @abstractmethod
    def dense(self) -> Tensor:
        """Return W [out, in] in fp32."""

    @property
    def shape(self) -> Shape:
        """(out, in)."""
        return self.out_features, self.in_features

    def coded(self) -> dict[str, Coded]:
        """Return the coded tensors by name, those of inner formats as "<inner>.<tensor>"."""
        nested = {f"{outer}.{name}": c for outer, form in self.inner().items() for name, c in form.coded().items()}
        return self._own() | nested

    def inner(self) -> dict[str, "Format"]:
        """Return the formats that it is made of."""
        return {name: child for name, child in self._modules.items() if isinstance(child, Format)}

    def replace_row(self, row: int, cut: CutRow) -> "Format":
        """Return the same matrix with another row, or one more behind the last; all else is bitwise the same.

        Args:
            row: its number, at most `out_features`.
            cut: returns the parts [1, ...] of the row's tensors, by tensor, for the format that stores the row.
        """
        coded = dict(self._own())
        for name, parts in cut(self).items():
            coded[name] = _spliced(coded[name], row, parts)
        shape = max(self.out_features, row + 1), self.in_features
        return type(self)(shape, coded, self.options)

    def indices(self) -> dict[str, Tensor]:
        """Return the index tensors by name."""
        return dict(self.named_buffers(recurse=False))

    def tensors(self) -> dict[str, Tensor]:
        """Return every stored tensor as "<tensor>.<part>", those of inner formats as "<inner>.<tensor>.<part>"."""
        tensors = {f"{name}.{part}": t for name, coded in self._own().items() for part, t in coded.parts().items()}
        tensors |= {f"{name}.{INDEX_PART}": index for name, index in self.indices().items()}
        return tensors | {
            f"{outer}.{key}": t for outer, form in self.inner().items() for key, t in form.tensors().items()
        }

    @property
    def num_bytes(self) -> int:
        """Bytes that the stored tensors occupy."""
        own = sum(coded.num_bytes for coded in self._own().values())
        own += sum(index.nbytes for index in self.indices().values())
        return own + sum(form.num_bytes for form in self.inner().values())

    def spec(self) -> Spec:
        """Return all that from_tensors needs besides the tensors."""
        codecs = {name: coded.codec.name for name, coded in self._own().items()}
        inner = {name: form.spec() for name, form in self.inner().items()}
        return Spec(format=self.kind, shape=self.shape, codecs=codecs, options=self.options, inner=inner)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Spec, inner: Mapping[str, "Format"] = NONE) -> Self:
        """Return the format that `spec` describes, made of exactly these tensors and inner formats.

        Raises:
            ValueError: naming the tensor or the option that does not fit.
        """
        shapes = {name: form.shape for name, form in inner.items()}
        layout, index_layout = format_layout(cls.kind, spec.shape, spec.options, shapes)
        if spec.codecs.keys() != layout.keys():
            raise ValueError(f"codecs must name {sorted(layout)}, not {sorted(spec.codecs)}")
        known = layout.keys() | index_layout.keys()
        if unknown := {name.partition(".")[0] for name in tensors} - known:
            raise ValueError(f"unknown tensors {sorted(unknown)}; {cls.kind} has {sorted(known | inner.keys())}")
        coded = {name: _coded(name, shape, tensors, spec.codecs[name]) for name, shape in layout.items()}
        indices = {name: t[INDEX_PART] for name in index_layout if (t := below(tensors, name)).keys() == {INDEX_PART}}
        return cls(spec.shape, coded, spec.options, inner=inner, indices=indices)

    def as_stored(self, *, is_head: bool = False, activations: int = 16) -> Matrix:
        """Return the matrix as it runs without torch, multiplied as it is stored, see `compressor.runtime.trains`."""
        tensors = {name: array(tensor) for name, tensor in self.tensors().items()}
        return matrix_of(tensors, self.spec(), is_head=is_head, activations=activations)

    def trainable(self) -> Self:
        """Return a copy whose tensors are float parameters, to be trained; see `compressor.codecs.Latent`."""
        return self._mapped(lambda tensor: tensor.trainable(), lambda form: form.trainable())

    def quantized(self) -> Self:
        """Return a trained copy as it is stored."""
        return self._mapped(lambda tensor: tensor.quantized(), lambda form: form.quantized())

    def recoded(self, codec: str) -> Self:
        """Return the same factors, each stored by `codec`."""
        return self._mapped(lambda tensor: tensor.recoded(codec_named(codec)), lambda form: form.recoded(codec))

    def _own(self) -> dict[str, Coded]:
        return {name: child for name, child in self._modules.items() if isinstance(child, Coded)}

    def _mapped(self, tensor: Callable[[Coded], Coded], form: Callable[["Format"], "Format"]) -> Self:
        coded = {name: tensor(own) for name, own in self._own().items()}
        inner = {name: form(child) for name, child in self.inner().items()}
        return type(self)(self.shape, coded, self.options, inner=inner, indices=self.indices())


def index(tensor: Tensor, part: Part) -> Tensor:
    """Return an index tensor as it is stored."""
    return tensor.to(DTYPES[part.dtype])


def _coded(name: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor], codec: str) -> Coded:
    try:
        return Coded(codec_named(codec), shape, below(tensors, name))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _spliced(coded: Coded, row: int, new: Mapping[str, Tensor]) -> Coded:
    """Return `coded` with the parts of one row [1, ...] in place of its own or behind the last."""
    if not coded.codec.row_by_row:
        raise ValueError(f"a table in {coded.codec.name} stores rows together, of which none can be replaced")
    parts = {name: torch.cat([part[:row], new[name], part[row + 1 :]]) for name, part in coded.parts().items()}
    return Coded(coded.codec, (max(coded.shape[0], row + 1), *coded.shape[1:]), parts)


def below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors called "<name>.<rest>", by their rest."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def check_ids(ids: Tensor, out_features: int) -> None:
    """Refuse row numbers outside [0, out), as indexing a matrix would; padding has no rows.

    Raises:
        IndexError: naming the range.
    """
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < out_features:
        raise IndexError(f"ids must lie in [0, {out_features}), not in [{int(ids.min())}, {int(ids.max())}]")


def blocks(total: int, size: int) -> list[range]:
    """Split range(total) into ranges of at most `size`."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]
