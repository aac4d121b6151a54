"""`residual`: a base, such as a quantised matrix, and a correction of it, such as one of low rank.

Reference: LQER, arXiv 2402.02446.
"""

from torch import Tensor

from compressor.formats.base import Format


class Residual(Format):
    """W = base + correction, both formats of the same shape."""

    kind = "residual"
    base: Format
    correction: Format

    @classmethod
    def of(cls, base: Format, correction: Format) -> "Residual":
        """Add `correction` to `base`."""
        return cls(base.shape, {}, {}, inner={"base": base, "correction": correction})

    def rows(self, ids: Tensor) -> Tensor:
        return self.base.rows(ids) + self.correction.rows(ids)

    def matmul(self, x: Tensor) -> Tensor:
        return self.base.matmul(x) + self.correction.matmul(x)

    def dense(self) -> Tensor:
        return self.base.dense() + self.correction.dense()
