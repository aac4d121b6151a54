"""`sparse`: a few entries of every row, exactly where they are, and zeros."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compressor.artifact.layouts import Shape, format_layout
from compressor.codecs import Coded, codec_named
from compressor.formats.base import Format, check_ids, index


class Sparse(Format):
    """W[o, columns[o, j]] = values[o, j] for j < k; all else is 0.

    The k columns of a row ascend, so that none is named twice. As a correction in a `residual` it makes the entries
    right that the base gets most wrong.
    """

    kind = "sparse"
    values: Coded  # [out, k]

    @classmethod
    def of(cls, values: Tensor, columns: Tensor, in_features: int, codec: str) -> "Sparse":
        """Store values [out, k] by `codec`, and which of `in_features` columns [out, k] they stand in, in any order."""
        order = columns.argsort(dim=1)
        coded = {"values": Coded.encode(codec_named(codec), values.gather(1, order))}
        shape, options = (len(values), in_features), {"kept": values.shape[1]}
        part = format_layout(cls.kind, shape, options, {}).indices["columns"]
        return cls(shape, coded, options, indices={"columns": index(columns.gather(1, order), part)})

    def __init__(self, shape: Shape, coded: Mapping[str, Coded], options: Mapping[str, Any], **nested: Any) -> None:
        super().__init__(shape, coded, options, **nested)
        columns = self.indices()["columns"]
        ascending = (columns[:, 1:] > columns[:, :-1]).all()
        if not (ascending and columns.min() >= 0 and columns.max() < shape[1]):
            raise ValueError(f"columns must ascend within 0 .. {shape[1] - 1} in every row")

    def rows(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.out_features)
        return self._scattered(self.values.take(ids), self.indices()["columns"][ids])  # [*ids, in]

    def dense(self) -> Tensor:
        return self._scattered(self.values.decode(), self.indices()["columns"])

    def _scattered(self, values: Tensor, columns: Tensor) -> Tensor:
        zeros = values.new_zeros(*values.shape[:-1], self.in_features)
        return zeros.scatter(-1, columns.to(torch.int64), values)
