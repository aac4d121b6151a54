"""Importing torch without the part of it that only its compilers use."""

import sys
from types import ModuleType

META = "torch._meta_registrations"


def skip_meta_kernels() -> None:
    """Let `import torch` pass over what it knows about tensors without data, which nothing here has.

    That is 18 MB of memory and a third of the import's time. Has no effect once torch is imported. `torch.compile`
    and `torch.export` would miss it, so this is for the serving process alone.
    """
    if "torch" not in sys.modules:
        sys.modules[META] = ModuleType(META)
