"""WikiText's files (Merity et al., arXiv 1609.07843): words between blanks, one line a paragraph or a heading.

GPT-2's paper undoes what the tokeniser of these files did, as far as that can be undone, and divides the loss by the
words of the file as it was (Radford et al., 2019, section 3.1). Its rules were not published; these are our own.
"""

import re

# In this order: marks between letters or digits, signs behind a word and before one, pairs of quotes, the lines' ends.
RULES = [
    (r" @([-,.])@ ", r"\1"),
    (r"(?<=\w) '(?=\w)", "'"),
    (r"(?<=s) '(?=\s)", "'"),
    (r"(?<=\d) (\N{EN DASH}) (?=\d)", r"\1"),
    (r"(?<=\S) (?=(?:[.,:;!?%)\]}]|\.\.\.)(?:\s|$))", ""),
    (r"(?<!\S)([(\[{$£€]) (?=\S)", r"\1"),
    (r'(?<!\S)" ([^"\n]*?) ?"(?![^\s.,:;!?)])', r'"\1"'),
    (r"(?<!\S)' ([^'\n]*?) ?'(?![^\s.,:;!?)])", r"'\1'"),
    (r"(?<==) (?==)", ""),
    (r"(?m)^ +| +$", ""),
]


def detokenised(text: str) -> str:
    """Return a text of WikiText as people write it; but for blanks, and @ around a sign, every character stays."""
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text


def word_count(text: str) -> int:
    """Return how many words a text of WikiText has, the end of each line being one, as in the published counts."""
    return len(text.split()) + text.count("\n")
