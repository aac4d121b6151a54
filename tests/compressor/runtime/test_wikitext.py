"""WikiText's tokenisation undone: known lines, and that no character but blanks and marks is lost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.runtime.wikitext import detokenised, word_count

LINES = {
    " = The Boat = \n": "= The Boat =\n",
    " = = Its crew = = \n": "== Its crew ==\n",
    " A well @-@ built boat of 1 @,@ 902 tons and 3 @.@ 5 m . \n": "A well-built boat of 1,902 tons and 3.5 m.\n",
    " It ( the boat ) was sold ; who knows why ? \n": "It (the boat) was sold; who knows why?\n",
    " Two signs : [ 1 ] , { 2 } ! \n": "Two signs: [1], {2}!\n",
    ' " I did n \'t , " he said . \n': '"I did n\'t," he said.\n',
    ' Of " Red " and " Blue " the first won . \n': 'Of "Red" and "Blue" the first won.\n',
    " The harbour 's boats and the boys ' books . \n": "The harbour's boats and the boys' books.\n",
    " They call it ' red ' , at 3 % of \N{POUND SIGN} 5 . \n": "They call it 'red', at 3% of \N{POUND SIGN}5.\n",
    " From 1914 \N{EN DASH} 18 \N{EN DASH} it was long \N{EN DASH} it lay ... \n": (
        "From 1914\N{EN DASH}18 \N{EN DASH} it was long \N{EN DASH} it lay...\n"
    ),
    " A .22 rifle \n \n <unk> lines \n": "A .22 rifle\n\n<unk> lines\n",
    "": "",
}
SIGNS = st.sampled_from(
    ["@-@", "@,@", "@.@", '"', "'", "'s", "(", ")", "=", ",", ".", "$", "%", "\n", "s", "boat", "7"]
)


@pytest.mark.parametrize("line", LINES)
def test_lines_are_as_people_write_them(line: str) -> None:
    assert detokenised(line) == LINES[line]


@given(st.lists(SIGNS, max_size=30).map(" ".join))
def test_only_blanks_and_marks_are_lost(text: str) -> None:
    kept = re.sub(r" @([-,.])@ ", r"\1", text)
    assert detokenised(text).replace(" ", "") == kept.replace(" ", "")


def test_line_ends_count_as_words() -> None:
    text = " = The Boat = \n \n It sank , they say . \n"
    assert word_count(text) == len(text.replace("\n", "<eos>").split()) == 13
