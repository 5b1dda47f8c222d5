"""The command `sweep`, from a checkpoint to a table that says which budget to take."""

import csv
import json

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from PIL import Image

from sparse_detr import Predictor
from sparse_detr.benchmark import machine, measure, sweep
from sparse_detr.budget import checked_budget
from sparse_detr.budget_table import budget_within
from sparse_detr.cli.main import main
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.config.own_data import use_own_data

CONFIG = """
from detectron2.config import LazyConfig
from sparse_detr.recipes import mobilenet_v2, {recipe}

dataloader, optimizer, lr_multiplier, train = LazyConfig.load(
    "configs/common/coco.py", ("dataloader", "optimizer", "lr_multiplier", "train"))
model = {recipe}(backbone=mobilenet_v2(), num_classes=2, embed_dim=64, encoder_layers=2, decoder_layers=1, num_levels=3,
                 feedforward_dim=16, num_queries=5{more})
dataloader.test.mapper.augmentations.short_size = 64
dataloader.test.num_workers = 0
train.device = "cpu"
"""
RECIPES = {"sparse_detr": "", "deformable_detr": "", "lite_deformable_detr": ", high_levels=1, blocks=1"}
BUDGETS = ["0.1", "1.0", "levels:0.1,0.5,1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the config.yaml of own data, weights and three images with a box each."""
    machine_is_quiet(monkeypatch)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in (1, 2, 3):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
        box = {"bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0, "category_id": 1 + number % 2}
        annotations.append({"id": number, "image_id": number, **box})
    classes = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    truth = tmp_path / "own.json"
    truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": classes}))
    for recipe, more in RECIPES.items():
        (tmp_path / f"{recipe}.py").write_text(CONFIG.format(recipe=recipe, more=more))
        cfg = load_config(str(tmp_path / f"{recipe}.py"))
        own = {"train_json": str(truth), "train_images": str(tmp_path / "images")}
        use_own_data(cfg, own | {"val_json": own["train_json"], "val_images": own["train_images"]})
        LazyConfig.save(cfg, str(tmp_path / f"{recipe}.yaml"))
        torch.manual_seed(0)
        torch.save({"model": build_detector(cfg).state_dict()}, tmp_path / f"{recipe}.pth")
    return tmp_path


def machine_is_quiet(monkeypatch, load=0.0):
    monkeypatch.setattr(machine, "sample_load", lambda: load)
    monkeypatch.setattr(machine.CpuUse, "others_since", lambda self, start: load)
    monkeypatch.setattr(machine.ReferenceKernel, "milliseconds", lambda self, repeats=5: 5.0)
    monkeypatch.setattr(measure, "measure_memory", lambda contestants, *_: {c.name: {1: 12.5} for c in contestants})


def run_sweep(folder, *options, recipe="sparse_detr", budgets=BUDGETS):
    files = ["--config-file", str(folder / f"{recipe}.yaml"), "--weights", str(folder / f"{recipe}.pth")]
    return main(["sweep", *files, "--rounds", "2", "--budget", *budgets, *options])


def test_every_budget_gets_scores_costs_and_shares_and_the_table_is_used_by_a_predictor(folder, capsys):
    assert run_sweep(folder, "--under-ms", "100000") == 0
    output = capsys.readouterr().out
    record = json.loads((folder / "sweep" / "sweep.json").read_text())
    few, everything, levels = record["entries"]
    assert [entry["budget"] for entry in record["entries"]] == BUDGETS
    assert (everything["kept_share"], everything["token_recall"]) == (1, 1)
    assert few["kept_share"] < 0.15 < levels["kept_share"] < 0.5
    assert few["gigaflops"] < levels["gigaflops"] < everything["gigaflops"]
    for entry in record["entries"]:
        assert entry["milliseconds"]["p50"] <= entry["milliseconds"]["p90"]
        assert {"AP", "AP50", "APs", "APm", "APl"} <= set(entry["scores"])
    assert "the cheapest budget with AP within 1 of the best: --budget" in output
    assert "the best AP under 100000 ms: --budget" in output
    with open(folder / "sweep" / "sweep.csv") as file:
        assert [row["budget"] for row in csv.DictReader(file)] == BUDGETS
    assert (folder / "sweep" / "sweep.png").stat().st_size > 10_000
    predictor = Predictor(folder / "sparse_detr.yaml", folder / "sparse_detr.pth", budget="ms:100000")
    assert str(predictor.budget) in BUDGETS or predictor.budget == checked_budget("budget", "0.1")


def test_a_sweep_that_was_stopped_goes_on_where_it_was(folder, monkeypatch, capsys):
    scored = []
    evaluate = sweep.SelectionMeter.forward

    def watch(self, batch):
        scored.append(self.budget)
        if len(scored) == 5:  # the second image of the second budget
            raise KeyboardInterrupt
        return evaluate(self, batch)

    monkeypatch.setattr(sweep.SelectionMeter, "forward", watch)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(folder)
    assert run_sweep(folder) == 0
    assert scored == ["0.1"] * 3 + ["1.0"] * 2 + ["1.0"] * 3 + ["levels:0.1,0.5,1"] * 3
    assert run_sweep(folder, budgets=[*BUDGETS, "mass:0.5"]) == 0  # one more
    assert scored[11:] == ["mass:0.5"] * 3
    capsys.readouterr()
    assert run_sweep(folder, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["entries"]) == 4
    assert len(scored) == 14


def test_one_more_budget_is_timed_with_all_that_the_table_has(folder, monkeypatch):
    """Only times of one run can be compared, and the note of a busy machine is of all of them."""
    assert run_sweep(folder, budgets=["0.1", "1"]) == 0
    timed, measure_times = [], measure.measure_times

    def watch(contestants, *arguments, **options):
        timed.extend(contestant.name for contestant in contestants)
        return measure_times(contestants, *arguments, **options)

    monkeypatch.setattr(measure, "measure_times", watch)
    assert run_sweep(folder, "--optimize", budgets=["0.3"]) == 0
    assert timed == ["0.1 plain", "1.0 plain", "0.3 plain", "0.3 fp32"]


def test_a_budget_of_an_earlier_call_is_timed_and_not_scored(folder, monkeypatch):
    machine_is_quiet(monkeypatch, load=1.5)
    monkeypatch.setattr(sweep.SelectionMeter, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(folder, budgets=["0.1", "0.3"])
    monkeypatch.undo()
    machine_is_quiet(monkeypatch)
    assert run_sweep(folder, budgets=["0.3"]) == 0
    unscored, scored = json.loads((folder / "sweep" / "sweep.json").read_text())["entries"]
    assert unscored["milliseconds"]
    assert scored["milliseconds"]
    assert unscored["scores"] is None
    assert scored["scores"]


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_busy_machine_keeps_the_scores_and_gets_no_times(folder, monkeypatch, capsys):
    machine_is_quiet(monkeypatch, load=1.5)
    assert run_sweep(folder, budgets=["0.1"]) == 1
    assert "some budgets have no times: other processes used 1.50" in capsys.readouterr().out
    (entry,) = json.loads((folder / "sweep" / "sweep.json").read_text())["entries"]
    assert entry["milliseconds"] is None
    assert entry["scores"]["AP"] is not None
    assert run_sweep(folder, "--allow-busy", budgets=["0.1"]) == 0
    assert json.loads((folder / "sweep" / "sweep.json").read_text())["disturbance"].startswith("other processes")


def test_the_first_images_alone_are_scored_where_that_is_asked_for(folder):
    assert run_sweep(folder, "--max-images", "1", budgets=["0.3"]) == 0
    record = json.loads((folder / "sweep" / "sweep.json").read_text())
    assert record["setting"]["images"] == "the first 1 images"
    meter_boxes = sweep.true_boxes_of(record["setting"]["data"])
    torch.testing.assert_close(meter_boxes[1], torch.tensor([[28 / 96, 28 / 64, 40 / 96, 40 / 64]]))


def test_a_table_of_other_weights_is_refused(folder, capsys):
    assert run_sweep(folder, budgets=["0.1"]) == 0
    state = torch.load(folder / "sparse_detr.pth")
    torch.save({"model": {name: 2 * value for name, value in state["model"].items()}}, folder / "sparse_detr.pth")
    assert run_sweep(folder, budgets=["0.1"]) == 2
    assert "is a sweep with weights" in capsys.readouterr().err


def change_config(folder, change):
    cfg = load_config(str(folder / "sparse_detr.yaml"))
    change(cfg)
    LazyConfig.save(cfg, str(folder / "sparse_detr.yaml"))


def test_a_table_of_other_settings_in_a_config_of_the_same_name_is_refused(folder, capsys):
    def change(cfg):
        cfg.dataloader.test.mapper.augmentations.short_size = 32

    assert run_sweep(folder, budgets=["0.1"]) == 0
    before = (folder / "sweep" / "sweep.json").read_text()
    change_config(folder, lambda cfg: cfg.train.update(output_dir="elsewhere"))  # no number depends on it
    assert run_sweep(folder, budgets=["0.1"]) == 0
    change_config(folder, change)
    assert run_sweep(folder, budgets=["0.1"]) == 2
    message = capsys.readouterr().err
    assert "is a sweep with config_sha256" in message
    assert "(the config has other settings than the one that was swept); give another --output" in message
    assert (folder / "sweep" / "sweep.json").read_text() == before


def register_data(folder, *, names="swept"):
    """Let the config register its data sets itself, instead of own data."""

    def change(cfg):
        register = {"_target_": "sparse_detr.data.register.register_coco_files", "class_names": ["cat", "dog"]}
        register |= {"annotations": str(folder / "own.json"), "images": str(folder / "images")}
        cfg.dataloader.register = [register | {"name": "swept"}, register | {"name": "more"}]
        cfg.dataloader.test.dataset.names = names
        cfg.train.own_data = {}

    change_config(folder, change)


def test_a_table_of_other_annotations_under_the_same_name_is_refused(folder, capsys):
    register_data(folder)
    assert run_sweep(folder, budgets=["0.1"]) == 0
    assert run_sweep(folder, budgets=["0.1"]) == 0
    truth = json.loads((folder / "own.json").read_text())
    truth["annotations"][0]["bbox"][0] += 1
    (folder / "own.json").write_text(json.dumps(truth))
    assert run_sweep(folder, budgets=["0.1"]) == 2
    message = capsys.readouterr().err
    assert "is a sweep with data_sha256" in message
    assert "the annotation file has other content" in message


def test_several_data_sets_are_refused_since_their_images_may_have_the_same_numbers(folder, capsys):
    register_data(folder, names=["swept", "more"])
    assert run_sweep(folder, budgets=["0.1"]) == 2
    message = "on 2 data sets (swept, more), but this command measures one; choose it: --opts dataloader.test"
    assert message in capsys.readouterr().err
    assert run_sweep(folder, "--opts", "dataloader.test.dataset.names=swept", budgets=["0.1"]) == 0


def test_a_table_of_an_older_version_is_refused_with_what_it_does_not_tell(folder, capsys):
    assert run_sweep(folder, budgets=["0.1"]) == 0
    table = folder / "sweep" / "sweep.json"
    record = json.loads(table.read_text())
    del record["setting"]["config_sha256"]
    table.write_text(json.dumps(record))
    assert run_sweep(folder, budgets=["0.1"]) == 2
    assert "was measured by an older version, which did not note config_sha256" in capsys.readouterr().err


def table_of(folder):
    return json.loads((folder / "sweep" / "sweep.json").read_text())


def test_times_of_a_busy_machine_say_so_everywhere_until_they_are_measured_again(folder, monkeypatch, capsys, caplog):
    machine_is_quiet(monkeypatch, load=1.5)
    assert run_sweep(folder, "--allow-busy", budgets=["0.1"]) == 0
    assert "NOT A QUIET MACHINE: other processes used 1.50" in capsys.readouterr().out
    (row,) = csv.DictReader((folder / "sweep" / "sweep.csv").read_text().splitlines())
    assert row["disturbance"].startswith("other processes used 1.50")
    budget_within("ms:100000", str(folder / "sparse_detr.pth"), "plain")
    assert "has times of a machine that was not quiet: other processes used 1.50" in caplog.text
    old = table_of(folder)

    assert run_sweep(folder, budgets=["0.1"]) == 1  # still busy
    output = capsys.readouterr().out
    assert "NOT A QUIET MACHINE: other processes used 1.50" in output
    assert "all times are of an earlier call: other processes used 1.50" in output
    assert table_of(folder) == old

    machine_is_quiet(monkeypatch)
    assert run_sweep(folder, budgets=["0.1"]) == 0
    assert table_of(folder)["disturbance"] is None
    assert table_of(folder)["entries"] != old["entries"]
    assert "NOT A QUIET MACHINE" not in capsys.readouterr().out
    (row,) = csv.DictReader((folder / "sweep" / "sweep.csv").read_text().splitlines())
    assert row["disturbance"] == ""


def test_times_with_other_rounds_or_threads_than_those_asked_for_are_measured_again(folder, monkeypatch, capsys):
    timed, measure_times = [], measure.measure_times

    def watch(contestants, *arguments, **options):
        timed.append(options["rounds"])
        return measure_times(contestants, *arguments, **options)

    monkeypatch.setattr(measure, "measure_times", watch)
    assert run_sweep(folder, budgets=["0.1"]) == 0
    assert run_sweep(folder, budgets=["0.1"]) == 0
    assert timed == [2]
    assert run_sweep(folder, "--rounds", "3", budgets=["0.1"]) == 0
    assert timed == [2, 3]
    threads = torch.get_num_threads()
    try:
        assert run_sweep(folder, "--rounds", "3", "--threads", str(threads), budgets=["0.1"]) == 0
        assert run_sweep(folder, "--rounds", "3", "--threads", str(threads + 1), budgets=["0.1"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert timed == [2, 3, 3]
    assert f"{threads + 1} threads, 3 rounds, torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("deformable_detr", ["--budget", "1"], "this model has a dense encoder, which refines every token"),
        ("sparse_detr", ["--budget", "0.1", "0.10"], "--budget names one twice: 0.1 0.1; name each once"),
        ("sparse_detr", ["--budget", "levels:0.1"], "--budget levels:0.1 has 1 shares, but this model 3 levels"),
        ("sparse_detr", ["--rounds", "0"], "--rounds 0 cannot be used; give a whole number, 1 or more"),
        ("lite_deformable_detr", [], "this model refines levels, not a share of the tokens: there is no budget"),
        ("sparse_detr", ["--within-ap", "-1"], "--within-ap -1 is no loss of AP"),
        ("sparse_detr", ["--within-ap", "nan"], "--within-ap nan is no loss of AP"),
        ("sparse_detr", ["--under-ms", "0"], "--under-ms 0 is no time"),
        ("sparse_detr", ["--under-ms", "nan"], "--under-ms nan is no time"),
        ("sparse_detr", ["--weights", "none.pth"], "none.pth"),
    ],
)
def test_what_cannot_be_swept_is_named(folder, capsys, recipe, options, message):
    assert run_sweep(folder, *options, recipe=recipe) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "sweep" / "sweep.json").exists()


def test_the_knee_is_farthest_above_the_line_from_the_cheapest_to_the_best():
    assert sweep.knee([(0, 0), (1, 6), (2, 8), (10, 10)]) == 2  # 0.8 - 0.2, above 0.6 - 0.1
    assert sweep.knee([(0, 0), (5, 5), (10, 10)]) is None  # on the line
    assert sweep.knee([(0, 10), (5, 9), (10, 8)]) is None  # the cheapest is the best
    assert sweep.knee([(0, 0), (10, 10)]) is None
