"""Errors with a way out.

ValueError             a caller's mistake: the message names the field, the value and the legal range
├── ArtifactError      an artefact that is damaged or does not exist; names the file and the field
└── CheckpointError    a checkpoint that is not a GPT-2 this project can read
"""


class ArtifactError(ValueError):
    """An artefact that cannot be trusted.

    Attributes:
        file: the file concerned, inside the artefact.
        field: the field or tensor concerned, or "" when it is the whole file.
    """

    def __init__(self, file: str, field: str, problem: str) -> None:
        self.file = file
        self.field = field
        where = f"{file}: {field}" if field else file
        super().__init__(f"{where}: {problem}")


class CheckpointError(ValueError):
    """A checkpoint that is not a GPT-2 this project can read."""


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Refuse `value` outside [low, high].

    Raises:
        ValueError: naming the field, the value and the legal range.
    """
    if not low <= value <= high:
        raise ValueError(f"{field} must be between {low} and {high}, not {value}")
