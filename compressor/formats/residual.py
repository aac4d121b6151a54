"""`residual`: a base, such as a quantised matrix, and a correction of it, such as one of low rank.

Reference: LQER, arXiv 2402.02446.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compressor.formats.base import Format, Layout, Shape


class Residual(Format):
    """W = base + correction, both formats of the same shape."""

    kind = "residual"
    base: Format
    correction: Format

    @classmethod
    def of(cls, base: Format, correction: Format) -> "Residual":
        """Add `correction` to `base`."""
        return cls(base.shape, {}, {}, inner={"base": base, "correction": correction})

    @classmethod
    def layout(cls, shape: Shape, options: Mapping[str, Any]) -> Layout:
        if options:
            raise ValueError(f"residual has no options, not {sorted(options)}")
        return {}

    @classmethod
    def check_inner(cls, shape: Shape, inner: Mapping[str, Shape]) -> None:
        if inner.keys() != {"base", "correction"}:
            raise ValueError(f"residual is made of base and correction, not {sorted(inner)}")
        for name, found in inner.items():
            if found != shape:
                raise ValueError(f"{name} must have shape {list(shape)}, not {list(found)}")

    def rows(self, ids: Tensor) -> Tensor:
        return self.base.rows(ids) + self.correction.rows(ids)

    def matmul(self, x: Tensor) -> Tensor:
        return self.base.matmul(x) + self.correction.matmul(x)

    def dense(self) -> Tensor:
        return self.base.dense() + self.correction.dense()
