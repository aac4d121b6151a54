"""Blocks of pages: only what is between their comments changes, and what cannot be written is refused beforehand."""

from pathlib import Path

import pytest

from compressor.pages import MISSING, Block, check, refresh, refreshed, table, told

BLOCKS = (Block("a", "one.md", lambda: "A\nB"), Block("b", "one.md", lambda: "C"), Block("a", "two.md", lambda: ""))
ONE = "# One\n<!-- generated: a -->\nold\n<!-- end -->\nkept\n<!-- generated: b -->\n<!-- end -->\n"


def test_only_blocks_change_and_the_second_time_nothing(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text(ONE)
    (tmp_path / "two.md").write_text("<!-- generated: a -->\n<!-- end -->")
    check(BLOCKS, tmp_path)
    refresh(BLOCKS, tmp_path)
    expected = "# One\n<!-- generated: a -->\nA\nB\n<!-- end -->\nkept\n<!-- generated: b -->\nC\n<!-- end -->\n"
    assert (tmp_path / "one.md").read_text() == expected
    written = {path: path.read_text() for path in tmp_path.iterdir()}
    assert refreshed(BLOCKS, tmp_path) == written


def test_a_page_without_its_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pages: cannot read"):
        check(BLOCKS, tmp_path)
    (tmp_path / "one.md").write_text("# nothing generated")
    for refused in (check, refresh):
        with pytest.raises(ValueError, match=r"pages: one\.md has no block <!-- generated: a -->"):
            refused(BLOCKS[:1], tmp_path)


def test_a_table_has_its_columns_aligned() -> None:
    assert table(["a", "b", "c"], [["1", "2", "3"]], left=2) == "| a | b | c |\n| --- | --- | ---: |\n| 1 | 2 | 3 |"


def test_results_that_are_not_there_are_said_to_be_missing(tmp_path: Path) -> None:
    text = told(tmp_path / "speed.json", lambda results: f"{results['speed']} tokens/s")
    assert text() == MISSING
    (tmp_path / "speed.json").write_text('{"speed": 7}')
    assert text() == "7 tokens/s"
