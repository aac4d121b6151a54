"""What is measured is written so that people can read it, however bad it is."""

import re
from pathlib import Path

import pytest

from compressor import huggingface, stored
from compressor.figures import figure
from compressor.gpt2 import GPT2, encoded
from tests.compressor.test_cli import ttgpt
from tests.conftest import TOKENIZER, tiny_model


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (43.5249, "43.52"),
        (13757.1649, "13757.16"),
        (9_999_999.0, "9999999.00"),
        (1e7, "1.00e+07"),
        (1e300, "1.00e+300"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_a_figure_is_never_long(value: float, written: str) -> None:
    assert figure(value, 2) == written


def test_the_command_line_prints_no_long_perplexity(tmp_path: Path) -> None:
    model = tiny_model()
    vectors = model.vectors()
    loud = GPT2(
        model.config,
        model.matrices(),
        vectors | encoded({"ln_f.weight": 1e5 * vectors["ln_f.weight"].decode()}, "fp32"),
    )
    huggingface.export(loud, TOKENIZER, tmp_path / "loud")
    text = tmp_path / "story.txt"
    text.write_text("The tide was out, and the boats leaned upon the hard. " * 5)
    out = tmp_path / "out"
    made = ttgpt("compress", tmp_path / "loud", "--method", "dense", "--out", out, "--text", text)
    assert made.returncode == 0
    assert stored.read(out).manifest.quality.perplexity > 1e100
    printed = [made, ttgpt("inspect", out), ttgpt("evaluate", out, "--text", text)]
    for run in printed:
        assert re.search(r"perplexity:? \d\.\d\de\+\d+", run.stdout)
        assert not re.search(r"\d{20}", run.stdout.replace(stored.read(out).manifest.digest, ""))
