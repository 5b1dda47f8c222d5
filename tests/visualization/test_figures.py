"""Figures are written whole, draw names as they are, and leave a user's plots alone."""

import matplotlib
import pytest
from matplotlib import pyplot
from PIL import Image

from sparse_detr.visualization.figures import new_figure, save_figure


def test_a_name_that_is_no_formula_is_drawn(tmp_path):
    figure, axis = new_figure(4, 3)
    axis.set_title(r"$\frac and $\x")  # as a formula it cannot be drawn
    save_figure(figure, tmp_path / "a.png", 50)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (200, 150)


def test_no_figure_is_left_in_the_way(tmp_path):
    backend, open_figures = matplotlib.get_backend(), pyplot.get_fignums()
    figure, axes = new_figure(4, 3, columns=2)
    save_figure(figure, tmp_path / "a.png")
    assert axes.shape == (2,)
    assert (matplotlib.get_backend(), pyplot.get_fignums()) == (backend, open_figures)


def test_a_failed_figure_leaves_the_old_picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure, axis = new_figure(4, 3)
    axis.add_artist(Failing())
    with pytest.raises(RuntimeError, match="cannot be drawn"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


class Failing(matplotlib.artist.Artist):
    def draw(self, renderer):
        raise RuntimeError("cannot be drawn")
