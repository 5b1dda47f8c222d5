"""Metrics of several runs are read as they were meant, and drawn side by side."""

import json

import numpy as np
import pytest
from PIL import Image

from sparse_detr.cli.main import main
from sparse_detr.errors import UserError
from sparse_detr.visualization import curves
from sparse_detr.visualization.curves import choose_panels, read_runs, running_mean
from sparse_detr.visualization.figures import save_figure


def write(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.json").write_text(text)
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    losses = [{"iteration": i, "total_loss": 10 - i, "tokens/recall": 0.5} for i in (1, 3, 5)]
    one = write(tmp_path / "a" / "rho10", *losses, {"iteration": 6, "bbox/AP": 20.0})
    other = write(tmp_path / "b" / "rho10", *losses, {"iteration": 6, "bbox/AP": 30.0, "bbox/APs": 5.0})
    return one, other


def test_a_run_is_a_folder_or_its_file(runs):
    [folder] = read_runs(runs[:1])
    [file] = read_runs([f"{runs[0]}/metrics.json"])
    assert folder.name == file.name == "rho10"
    assert folder.series["total_loss"] == file.series["total_loss"] == ([1, 3, 5], [9, 7, 5])


def test_runs_of_one_name_are_told_apart_by_their_folders(runs):
    assert [run.name for run in read_runs(runs)] == ["a/rho10", "b/rho10"]


def test_what_a_resumed_training_writes_again_counts_once(tmp_path):
    lines = [{"iteration": i, "total_loss": float(i)} for i in (2, 4, 6, 8)]
    again = [{"iteration": i, "total_loss": 10.0 * i} for i in (4, 6)]
    evaluated = [{"iteration": 6, "bbox/AP": 1.0}, {"iteration": 5, "bbox/AP50": 2.0}]
    [run] = read_runs([write(tmp_path, *lines, *evaluated, *again)])
    assert run.series["total_loss"] == ([2, 4, 6], [2, 40, 60])
    assert run.series["bbox/AP"] == ([6], [1.0])


def test_torn_lines_and_values_that_are_not_finite_are_left_out(tmp_path):
    path = write(tmp_path, {"iteration": 1, "total_loss": 3.0, "bbox/AP": float("nan")}, '{"iteration": 2, "total_lo')
    [run] = read_runs([path])
    assert run.series == {"total_loss": ([1], [3.0])}


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty", "has no metrics.json; name the output"), ("nowhere", "there is no run"), ("other", "holds no metrics")],
)
def test_a_folder_without_metrics_is_an_error(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other", "no json\n")
    with pytest.raises(UserError, match=message):
        read_runs([str(tmp_path / name)])


def test_a_run_that_is_named_twice_is_an_error(runs):
    with pytest.raises(UserError, match="named twice"):
        read_runs([runs[0], f"{runs[0]}/metrics.json"])


def test_panels_are_those_that_a_run_has_and_those_that_are_asked_for(runs):
    found = read_runs(runs)
    assert choose_panels(found) == ["total_loss", "bbox/AP", "tokens/recall"]
    assert choose_panels(found, ["bbox/APs", "bbox/AP"]) == ["total_loss", "bbox/AP", "tokens/recall", "bbox/APs"]
    with pytest.raises(UserError, match=r"no run has the metric 'bbox/APS'; there are .*bbox/APs"):
        choose_panels(found, ["bbox/APS"])


def test_the_running_mean_takes_as_many_values_on_either_side():
    assert running_mean([1, 5, 3, 100, 3], 3).tolist() == [1, 3, 36, pytest.approx(106 / 3), 3]
    assert running_mean([1, 5, 3], 1).tolist() == [1, 5, 3]
    np.testing.assert_allclose(running_mean([2.0] * 7, 5), 2.0)


def test_the_command_draws_runs_side_by_side_and_prints_their_final_values(runs, tmp_path, capsys):
    picture = tmp_path / "new" / "plot.png"
    assert main(["plot", *runs, "--output", str(picture), "--metric", "bbox/APs", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["b/rho10"]["bbox/AP"] == {"iteration": 6, "last": 30.0, "smallest": 30.0, "largest": 30.0}
    assert values["a/rho10"]["total_loss"] == {"iteration": 5, "last": 5.0, "smallest": 5.0, "largest": 9.0}
    assert "bbox/APs" not in values["a/rho10"]
    with Image.open(picture) as drawn:
        colors = {color for _, color in drawn.convert("RGB").getcolors(10**6)}
    assert {(0x1B, 0x6C, 0xA8), (0xD9, 0x82, 0x2B)} <= colors


def test_any_name_of_a_run_is_in_the_legend(tmp_path, monkeypatch):
    names = ["_hidden", "$\\frac$", "\u4e2d\u6587"]
    runs = [write(tmp_path / name, {"iteration": 1, "total_loss": 3.0}) for name in names]
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure) or save_figure(figure, path))
    assert main(["plot", *runs, "--output", str(tmp_path / "plot.png")]) == 0
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["_hidden", "$\\frac$", "run 3"]


def test_drawing_leaves_the_way_to_show_figures_alone(runs, tmp_path):
    import matplotlib

    matplotlib.use("svg")
    assert main(["plot", *runs, "--output", str(tmp_path / "plot.png")]) == 0
    assert matplotlib.get_backend() == "svg"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --output FILE.png"),
        (["--output", "plot.jpg"], "plot.jpg is no .png"),
        (["--json", "--smooth", "4"], "--smooth 4 cannot be used; give an odd number"),
    ],
)
def test_wrong_options_are_refused(runs, options, message, capsys):
    assert main(["plot", *runs, *options]) == 2
    assert message in capsys.readouterr().err
