"""`dense`: W itself. "int8" is this format with the int8 codec."""

from torch import Tensor

from compressor.codecs import Coded, codec_named
from compressor.formats.base import Format


class Dense(Format):
    """W [out, in] as one coded tensor."""

    kind = "dense"
    matrix: Coded  # [out, in]

    @classmethod
    def of(cls, matrix: Tensor, codec: str) -> "Dense":
        """Store `matrix` [out, in] by `codec`."""
        return cls.coded_as(Coded.encode(codec_named(codec), matrix))

    @classmethod
    def coded_as(cls, matrix: Coded) -> "Dense":
        """Take over a coded matrix [out, in]."""
        out_features, in_features = matrix.shape
        return cls((out_features, in_features), {"matrix": matrix}, {})

    def rows(self, ids: Tensor) -> Tensor:
        return self.matrix.take(ids)  # [*ids, in]

    def dense(self) -> Tensor:
        return self.matrix.decode()
