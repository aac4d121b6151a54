"""Questions made of text: the true answer is first, and the scores are the model's."""

import pytest
import torch
from tokenizers import Tokenizer

from compressor import huggingface
from compressor.evaluation import questions as tasks
from compressor.progress import silent
from tests.conftest import tiny_model
from tests.tolerances import EXACT

TOKENIZER = Tokenizer.from_file(str(huggingface.EMBEDDED_FOLDER / "tokenizer.json"))
TEXT = (huggingface.EMBEDDED_FOLDER / "validation.txt").read_text()


def test_a_passage_and_its_last_word_make_up_the_paragraph() -> None:
    questions = tasks.last_words(TEXT, TOKENIZER)
    assert len(questions) > 50
    plain = " ".join(TEXT.split())
    for context, (answer,) in questions:
        asked = TOKENIZER.decode(context.tolist())
        assert asked + TOKENIZER.decode(answer.tolist()) in plain
        assert len(asked.split()) >= tasks.MIN_WORDS - 1


def test_the_true_continuation_is_first_and_the_others_are_from_elsewhere() -> None:
    questions = tasks.continuations(TEXT, TOKENIZER, limit=20)
    ids = TOKENIZER.encode(TEXT).ids
    for i, (context, answers) in enumerate(questions):
        start = i * 64
        assert context.tolist() == ids[start : start + 48]
        assert answers[0].tolist() == ids[start + 48 : start + 64]
        assert len({tuple(answer.tolist()) for answer in answers}) == 4


@torch.inference_mode()
def test_a_score_is_the_log_probability_of_the_answer() -> None:
    model = tiny_model()
    questions = [
        tasks.Question(torch.arange(5), [torch.tensor([7, 8, 9])]),
        tasks.Question(torch.arange(9), [torch.tensor([3])]),
    ]
    for question, ((score, _),) in zip(questions, tasks._scores(model.decoder(), questions, silent), strict=True):
        ids = torch.cat([question.context, question.answers[0]])
        logs = model.logits(model(ids[:-1].unsqueeze(0)))[0].log_softmax(-1)
        expected = sum(float(logs[t - 1, ids[t]]) for t in range(len(question.context), len(ids)))
        assert score == pytest.approx(expected, rel=10 * EXACT)


def test_the_trained_model_beats_chance_and_the_random_one_does_not() -> None:
    trained = tasks.accuracy(huggingface.load("gpt2-mini").model.decoder(), TEXT, TOKENIZER)
    assert trained.choice > 0.5 > 0.45 > tasks.accuracy(tiny_model().decoder(), TEXT, TOKENIZER).choice
    assert trained.last_word > 0


def test_a_text_without_questions_is_refused() -> None:
    with pytest.raises(ValueError, match="text: must have a paragraph of at least 30 words"):
        tasks.accuracy(tiny_model().decoder(), "Too short.", TOKENIZER)
    with pytest.raises(ValueError, match=r"text: must have at least 256 tokens, not \d\d$"):
        tasks.accuracy(tiny_model().decoder(), "word " * 40, TOKENIZER)


def test_line_ends_of_windows_end_paragraphs_too() -> None:
    text = "\n\n".join(["The tide was out " * 10 + "again."] * 3)
    assert len(tasks.passages(text)) == 3
    assert tasks.passages(text.replace("\n", "\r\n")) == tasks.passages(text)
