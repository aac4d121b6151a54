"""How an operator has base models read a conversation: as a transcript, one turn like the other."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_TEMPLATE_BYTES = 4096
ROLE, CONTENT = "{role}", "{content}"
ANSWERS = "assistant"


@dataclass(frozen=True)
class ChatTemplate:
    """One turn of a transcript.

    Attributes:
        opening: what stands before the content, with the role's place.
        closing: what stands behind it; there an answer ends.
    """

    opening: str
    closing: str

    @classmethod
    def read(cls, path: Path) -> "ChatTemplate":
        """Return the template in a file; raises ValueError saying what it must be."""
        try:
            data = path.read_bytes()
            text = data.decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} must be a text file: {error}") from error
        opening, content, closing = text.partition(CONTENT)
        if len(data) > MAX_TEMPLATE_BYTES or not content or not closing or text.count(CONTENT) > 1:
            raise ValueError(
                f"{path} must have at most {MAX_TEMPLATE_BYTES} bytes, and one {CONTENT} with something behind it"
            )
        if ROLE not in opening or ROLE in closing:
            raise ValueError(f"{path} must have {ROLE} before {CONTENT}, not behind it")
        return cls(opening, closing)

    @property
    def is_spaced(self) -> bool:
        """Whether a space stands before the content: an answer's tokens begin with it, so it is not in the prompt."""
        return self.opening.endswith(" ")

    def transcript(self, turns: Iterable[tuple[str, str]]) -> str:
        """Return what the model continues, given roles and contents."""
        told = "".join(self.opening.replace(ROLE, role) + content + self.closing for role, content in turns)
        return told + self.opening.replace(ROLE, ANSWERS).removesuffix(" ")
