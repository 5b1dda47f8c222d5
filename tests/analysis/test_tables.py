"""Measured numbers as Markdown."""

import pytest

from sparse_detr.analysis.tables import fill_readme, markdown_table, mean_and_deviation
from sparse_detr.errors import UserError


def test_a_table_has_a_line_for_the_header_one_below_it_and_one_for_each_row():
    assert markdown_table(["", "AP"], [["a", "1"], ["b", "2"]]) == "|  | AP |\n| --- | --- |\n| a | 1 |\n| b | 2 |"


def test_a_bar_and_a_line_break_do_not_end_a_cell():
    assert markdown_table(["class"], [["a|b\nc"]]) == "| class |\n| --- |\n| a\\|b c |"


def test_several_values_have_a_deviation_and_one_has_none():
    assert mean_and_deviation([50.0, 52.0]) == "51.0 ± 1.4"
    assert mean_and_deviation([50.0, 52.0], digits=3) == "51.000 ± 1.414"
    assert mean_and_deviation([0.25], digits=2) == "0.25"


def test_a_readme_is_filled_between_the_markers_of_one_name_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- table x -->\nold\n<!-- end x -->\nb\n<!-- table y -->\n<!-- end y -->\n")
    fill_readme(readme, "x", "new \\1")
    expected = "a\n<!-- table x -->\nnew \\1\n<!-- end x -->\nb\n<!-- table y -->\n<!-- end y -->\n"
    assert readme.read_text() == expected


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_readme_that_cannot_be_read_is_named(content, tmp_path):
    readme = tmp_path / "README.md"
    if content:
        readme.write_bytes(content)
    reason = "it is no text in UTF-8" if content else "No such file or directory"
    with pytest.raises(UserError, match=rf"README.md cannot be read \({reason}\); give a file with the lines"):
        fill_readme(readme, "x", "new")


def test_a_readme_without_the_markers_is_refused_and_stays_as_it_was(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table x -->\n")
    with pytest.raises(UserError, match="no lines <!-- table x --> and <!-- end x -->; put them"):
        fill_readme(readme, "x", "new")
    assert readme.read_text() == "<!-- table x -->\n"
