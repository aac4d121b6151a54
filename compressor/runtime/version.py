"""What measured results depend on: the layout of artefacts, and the runtime's arithmetic."""

from compressor.artifact.manifest import SCHEMA_VERSION

# Rises whenever the same artefact and text get other bits: another order of sums, another rounding, another kernel.
VERSION = 3


def versions() -> dict[str, int]:
    """Return both, as every committed result has them."""
    return {"artifact": SCHEMA_VERSION, "runtime": VERSION}
