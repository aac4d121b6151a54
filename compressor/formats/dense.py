"""`dense`: W itself. "int8" is this format with the int8 codec."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compressor.codecs import Coded, codec_named
from compressor.formats.base import Format, Layout, Path, Shape


class Dense(Format):
    """W [out, in] as one coded tensor."""

    kind = "dense"
    matrix: Coded  # [out, in]

    @classmethod
    def of(cls, matrix: Tensor, codec: str, path: Path | None = None) -> "Dense":
        """Store `matrix` [out, in] by `codec`; it is multiplied as stored where there is a kernel for that."""
        return cls.coded_as(Coded.encode(codec_named(codec), matrix), path)

    @classmethod
    def coded_as(cls, matrix: Coded, path: Path | None = None) -> "Dense":
        """Take over a coded matrix [out, in]."""
        out_features, in_features = matrix.shape
        path = path or ("stored" if matrix.codec.has_kernel(in_features) else "dense")
        return cls((out_features, in_features), {"matrix": matrix}, {}, path)

    @classmethod
    def layout(cls, shape: Shape, options: Mapping[str, Any]) -> Layout:
        if options:
            raise ValueError(f"dense has no options, not {sorted(options)}")
        return {"matrix": shape}

    def rows(self, ids: Tensor) -> Tensor:
        return self.matrix.take(ids)  # [*ids, in]

    def matmul(self, x: Tensor) -> Tensor:
        return self.matrix.linear(x)  # [..., out]

    def dense(self) -> Tensor:
        return self.matrix.decode()
