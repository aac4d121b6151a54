"""Prepare compressed GPT-2 models at build time.

Letters used everywhere: V vocabulary, D width, B batch, T time (tokens), L layers, H heads,
N order (number of cores), k core index, r rank, M number of looked-up rows.

A *codec* stores the values of one tensor, a *format* is how one weight matrix is made of such
tensors and multiplied, a *method* finds a format for one matrix.
"""

__version__: str


def __getattr__(name: str) -> str:
    """Return the version when it is asked for: finding it takes longer than anything else here."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version

    return version("ttgpt")
