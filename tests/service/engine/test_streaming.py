"""Laws of the incremental detokeniser."""

from codecs import getincrementaldecoder

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.models import LoadedModel
from service.engine.streaming import TextStream, byte_alphabet

PIECES = st.lists(st.one_of(st.binary(max_size=6), st.text(alphabet="ab🙂漢é", max_size=3).map(str.encode)))
STOPS = st.lists(st.text(alphabet="ab🙂�", min_size=1, max_size=3), max_size=4)


def streamed(pieces: list[bytes], stops: list[str], unstopped: int = 0) -> tuple[list[str], bool]:
    stream = TextStream(stops, unstopped)
    shown = []
    for piece in pieces:
        shown.append(stream.push(piece))
        if stream.stopped:
            return shown, True
    return [*shown, stream.finish()], stream.stopped


def cut(text: str, stops: list[str], past: int = 0) -> str:
    """The text before the first stop string that is complete behind `past`, found one character at a time."""
    for end in range(past + 1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))]
    return text


@given(PIECES, STOPS)
def test_pieces_make_up_the_text_before_the_first_stop(pieces: list[bytes], stops: list[str]) -> None:
    shown, stopped = streamed(pieces, stops)
    text = b"".join(pieces).decode(errors="replace")
    assert "".join(shown) == cut(text, stops)
    assert stopped == (cut(text, stops) != text)


@given(PIECES, STOPS, st.integers(0, 9))
def test_stops_count_behind_the_first_tokens_only(pieces: list[bytes], stops: list[str], unstopped: int) -> None:
    """They may begin there, though; as in vLLM."""
    shown, stopped = streamed(pieces, stops, unstopped)
    text = b"".join(pieces).decode(errors="replace")
    first = getincrementaldecoder("utf-8")(errors="replace").decode(b"".join(pieces[:unstopped]))
    past = len(first) if unstopped <= len(pieces) else len(text)
    assert "".join(shown) == cut(text, stops, past)
    assert stopped == (cut(text, stops, past) != text)


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=64), min_size=1, max_size=16), st.text(alphabet="ab"))
def test_as_much_is_held_back_as_may_become_a_stop(stops: list[str], text: str) -> None:
    stream = TextStream(stops)
    shown = stream.push(text.encode())
    ends = [text[at:] for at in range(len(text)) if any(stop.startswith(text[at:]) for stop in stops)]
    assert stream.stopped or shown == text.removesuffix(max(ends, key=len, default=""))


@given(st.text(), st.data())
def test_characters_are_never_split(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)))))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    shown, _ = streamed(pieces, [])
    assert "".join(shown) == text
    assert all(piece in text for piece in shown)


def test_text_without_stops_is_not_held_back() -> None:
    assert TextStream([]).push(b"abc") == "abc"
    assert TextStream(["cde"]).push(b"abc") == "ab"


def test_byte_alphabet_is_a_bijection() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))


@pytest.mark.parametrize(
    "text", ["The old man, at 9 o'clock.", "naïve 🙂🙃 漢字\n\ttabs  and spaces", "\x00\x7f\u0301"]
)
def test_bytes_of_the_real_tokenizer(tiny: LoadedModel, text: str) -> None:
    ids = tiny.encode(text)
    assert b"".join(tiny.vocabulary.bytes[i] for i in ids).decode() == text
    assert tiny.tokenizer.decode(ids) == text
    assert len(text.encode()) <= len(ids) * tiny.vocabulary.longest_bytes


def test_special_tokens_have_no_text(tiny: LoadedModel) -> None:
    assert tiny.vocabulary.special == {tiny.eos_id}
    assert tiny.vocabulary.bytes[tiny.eos_id] == b""
    assert len(tiny.vocabulary.bytes) == tiny.decoder.config.vocab_size


@pytest.mark.parametrize("text", ["🙂🙃 👩‍👩‍👧‍👦 ends", "漢字かな交じり文。", "naïve Zürich 한국어 🇺🇳"])
@pytest.mark.parametrize("stop", [None, "ends", "かな", "国", "語", "\u200d", "🇳"])
def test_tokens_of_emoji_and_cjk(tiny: LoadedModel, text: str, stop: str | None) -> None:
    """Through the byte-level tokenizer, most of whose tokens are parts of such characters."""
    ids = tiny.encode(text)
    split = 0
    stream = TextStream([stop] if stop else [])
    pieces = []
    for token_id in ids:
        data = tiny.vocabulary.bytes[token_id]
        split += "\ufffd" in data.decode(errors="replace")
        pieces.append(stream.push(data))
    pieces.append(stream.finish())
    assert split > 0
    assert "".join(pieces) == (text.partition(stop)[0] if stop else text)
    assert not any("\ufffd" in piece for piece in pieces)
    assert not stop or not any(stop in "".join(pieces[:k]) for k in range(len(pieces) + 1))
