"""What tokens are called in answers."""

from collections.abc import Sequence

from service.engine.models import LoadedModel
from service.engine.streaming import TextStream


def released(ids: Sequence[int], model: LoadedModel) -> list[str]:
    """Return the text that each token of a prompt releases; special ones are called by their names."""
    stream = TextStream(())
    pieces = [stream.push(model.vocabulary.bytes[i] or _name(i, model).encode()) for i in ids]
    pieces[-1] += stream.finish()
    return pieces


def own_text(token_id: int, model: LoadedModel) -> str:
    """Return the text of a token that stands alone: its name if it is special, and U+FFFD for half a character."""
    return model.vocabulary.bytes[token_id].decode(errors="replace") or _name(token_id, model)


def spelt(token_id: int, model: LoadedModel) -> str:
    """Return what no other token is called: its text or name, or the bytes of half a character."""
    data = model.vocabulary.bytes[token_id]
    if not data:
        return _name(token_id, model) or f"id:{token_id}"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _name(token_id: int, model: LoadedModel) -> str:
    return model.tokenizer.id_to_token(token_id) or ""
