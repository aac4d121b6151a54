"""`low_rank`: two factors, W = left @ right, which is also a tensor train of two cores."""

import torch.nn.functional as F
from torch import Tensor

from compressor.codecs import Coded, codec_named
from compressor.formats.base import Format


class LowRank(Format):
    """W = diag(row_scale) @ left [out, r] @ right [r, in] + 1 column_offset.

    row_scale [out] (a scale per token) and column_offset [in] (an auto-encoder's decoder bias) are
    optional.
    """

    kind = "low_rank"
    left: Coded
    right: Coded

    @classmethod
    def of(
        cls,
        left: Tensor,
        right: Tensor,
        codec: str,
        *,
        row_scale: Tensor | None = None,
        column_offset: Tensor | None = None,
    ) -> "LowRank":
        """Store the factors left [out, r] and right [r, in] and the optional vectors by `codec`."""
        values = {"left": left, "right": right, "row_scale": row_scale, "column_offset": column_offset}
        coded = {name: Coded.encode(codec_named(codec), v) for name, v in values.items() if v is not None}
        options = {
            "rank": left.shape[1],
            "row_scale": row_scale is not None,
            "column_offset": column_offset is not None,
        }
        return cls((left.shape[0], right.shape[1]), coded, options)

    def rows(self, ids: Tensor) -> Tensor:
        coded = self.coded()
        rows = self.left.take(ids) @ self.right.decode()  # [*ids, in]
        if "row_scale" in coded:
            rows = rows * coded["row_scale"].decode()[ids].unsqueeze(-1)
        if "column_offset" in coded:
            rows = rows + coded["column_offset"].decode()
        return rows

    def matmul(self, x: Tensor) -> Tensor:
        coded = self.coded()
        y = F.linear(
            F.linear(x, self.right.decode(x.dtype)), self.left.decode(x.dtype)
        )  # [..., in] -> [..., r] -> [..., out]
        if "row_scale" in coded:
            y = y * coded["row_scale"].decode(x.dtype)
        if "column_offset" in coded:
            y = y + (x @ coded["column_offset"].decode(x.dtype)).unsqueeze(-1)
        return y

    def dense(self) -> Tensor:
        coded = self.coded()
        matrix = self.left.decode() @ self.right.decode()  # [out, in]
        if "row_scale" in coded:
            matrix = matrix * coded["row_scale"].decode().unsqueeze(-1)
        if "column_offset" in coded:
            matrix = matrix + coded["column_offset"].decode()
        return matrix
