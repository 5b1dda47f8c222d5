"""The command blames every missed object once, and its sums agree with each other and with COCO's matching."""

import csv
import json

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

import sparse_detr.analysis.blame as verdicts_module
import sparse_detr.evaluation.tide as tide_module
from sparse_detr import Predictor
from sparse_detr.cli.main import main
from sparse_detr.config import load_config
from sparse_detr.config.kinds import kind_of
from sparse_detr.config.model import build_detector
from sparse_detr.config.own_data import use_own_data
from sparse_detr.data.register import register_coco_files
from tests.cli.test_demo import COMMON, CONFIG, YAML
from tests.modeling.tiny import shake

SIZE = (96, 80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with models, images, and true objects of which some equal detections of the sparse model."""
    folder = tmp_path_factory.mktemp("blame")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number in (1, 2, 3):
        pixels = random.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    for kind, recipe in {"sparse": "sparse_detr", "dense": "deformable_detr"}.items():
        text = CONFIG.format(coco=str(COMMON / "coco.py"), schedule=str(COMMON / "schedule.py"), recipe=recipe)
        (folder / f"{kind}.py").write_text(text)
        torch.manual_seed(0)
        model = instantiate(load_config(str(folder / f"{kind}.py")).model)
        shake(model, 0.05)
        torch.save({"model": model.state_dict()}, folder / f"{kind}.pth")
    (folder / "truth.json").write_text(json.dumps(make_truth(folder)))
    return folder


def make_truth(folder):
    """Take every third detection of the sparse model as a true object, moved a little; add other boxes and a crowd."""
    predictor = Predictor(folder / "sparse.py", folder / "sparse.pth")
    annotations, random = [], np.random.default_rng(1)
    for number in (1, 2):
        found = predictor(folder / "images" / f"{number}.png")
        for box, label in zip(found.pred_boxes.tensor[::3].tolist(), found.pred_classes[::3].tolist(), strict=True):
            x0, y0, x1, y1 = (side + move for side, move in zip(box, random.uniform(-4, 4, 4), strict=True))
            annotations.append((number, label, [x0, y0, max(x1 - x0, 2), max(y1 - y0, 2)]))
        for x, y, side in random.uniform(2, 60, (4, 3)):
            annotations.append((number, int(x) % 2, [x, y, side / 2, side / 3]))
    boxes = [
        {"id": i, "image_id": image, "category_id": (1, 5)[label], "bbox": box, "area": 30.0 * box[2], "iscrowd": 0}
        for i, (image, label, box) in enumerate(annotations, start=1)
    ]
    boxes[-1]["iscrowd"] = 1
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": SIZE[0], "height": SIZE[1]} for n in (1, 2, 3)],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
    }


def blame(folder, output, *options, kind="sparse", truth="truth.json"):
    """Run the command; return its exit code."""
    paths = {"--config-file": f"{kind}.py", "--weights": f"{kind}.pth", "--truth": truth, "--images": "images"}
    words = [word for option, name in paths.items() for word in (option, str(folder / name))]
    return main(["blame", *words, "--output", str(output), *options])


def results(output):
    with open(output / "blame.csv", newline="") as file:
        return json.loads((output / "blame.json").read_text()), list(csv.DictReader(file))


@pytest.mark.parametrize(("threshold", "iou"), [("0", "0.5"), ("0", "0.75"), ("0.3", "0.5")])
def test_every_object_is_found_or_blamed_once_and_hotcoco_agrees(folder, tmp_path, threshold, iou):
    assert blame(folder, tmp_path, "--score-threshold", threshold, "--iou", iou, "--budget", "0.2") == 0
    record, rows = results(tmp_path)
    truth = json.loads((folder / "truth.json").read_text())["annotations"]
    assert sorted(int(row["annotation_id"]) for row in rows) == [item["id"] for item in truth if not item["iscrowd"]]
    assert sum(record["verdicts"].values()) == record["objects"] == len(rows)
    for part in ("by_size", "by_class"):
        for verdict, count in record["verdicts"].items():
            assert sum(counts[verdict] for counts in record[part].values()) == count
    missed = len(rows) - record["verdicts"]["found"]
    assert sum(sum(row.values()) for row in record["tide_of_misses"].values()) == missed
    if record["tide"] is not None:  # there is a detection above the threshold
        assert record["differs_from_coco"] == 0
        misses = sum(row["Miss"] for row in record["tide_of_misses"].values())
        assert misses == record["tide"]["counts"]["Miss"]


def test_the_made_objects_are_found_and_others_are_not(folder, tmp_path, capsys):
    assert blame(folder, tmp_path, "--score-threshold", "0") == 0
    verdicts = results(tmp_path)[0]["verdicts"]
    assert verdicts["found"] >= 3
    assert sum(verdicts.values()) - verdicts["found"] >= 3
    out = capsys.readouterr().out
    assert f"| all | {sum(verdicts.values())} | {verdicts['found']} |" in out
    assert "found objects: the same as hotcoco's" in out
    assert {path.name for path in tmp_path.iterdir()} == {"blame.json", "blame.csv", "blame.png", "worst.png"}


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_where_every_token_is_selected_no_miss_is_the_selectors(folder, tmp_path, kind):
    options = ("--budget", "1") if kind == "sparse" else ()
    assert blame(folder, tmp_path, *options, kind=kind) == 0
    record, rows = results(tmp_path)
    assert record["verdicts"]["not selected"] == 0
    assert record["verdicts"]["found"] < len(rows)
    assert {row["token_share"] for row in rows} == {"1.0000"}


def test_a_tiny_budget_makes_misses_the_selectors_and_the_advice_says_so(folder, tmp_path, capsys):
    assert blame(folder, tmp_path, "--budget", "0.01") == 0
    record, rows = results(tmp_path)
    blamed = [row for row in rows if row["verdict"] == "not selected"]
    assert len(blamed) == record["verdicts"]["not selected"] > 0
    assert {row["is_hit"] for row in blamed} == {"False"}
    assert "these are the selector's: raise the budget" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_skipped_with_their_objects(folder, tmp_path, capsys):
    truth = json.loads((folder / "truth.json").read_text())
    truth["images"][1]["file_name"] = "missing.png"
    (folder / "torn.json").write_text(json.dumps(truth))
    assert blame(folder, tmp_path, truth="torn.json") == 0
    record, rows = results(tmp_path)
    assert (record["images"], record["skipped"]) == (2, 1)
    assert {row["image_id"] for row in rows} == {"1"}
    assert "missing.png" in capsys.readouterr().err


def test_only_the_first_images_are_taken_on_request(folder, tmp_path):
    assert blame(folder, tmp_path, "--max-images", "1") == 0
    record, rows = results(tmp_path)
    assert record["images"] == 1
    assert {row["image_id"] for row in rows} == {"1"}


def change_classes(folder, name, categories):
    truth = json.loads((folder / "truth.json").read_text())
    truth["categories"] = [{"id": number, "name": label} for number, label in categories]
    truth["annotations"] = [item for item in truth["annotations"] if item["category_id"] == 1]
    (folder / name).write_text(json.dumps(truth))
    return name


def test_the_sums_are_printed_as_json(folder, tmp_path, capsys):
    assert blame(folder, tmp_path, "--json", "--max-images", "1") == 0
    assert json.loads(capsys.readouterr().out) == results(tmp_path)[0]


def test_a_number_that_json_does_not_have_is_printed_as_null(folder, tmp_path, capsys, monkeypatch):
    tide = tide_module.Tide({"Cls": 0}, {"Cls": float("nan")}, set())
    monkeypatch.setattr("sparse_detr.cli.blame._tide", lambda *args: (tide, ""))
    assert blame(folder, tmp_path, "--json", "--max-images", "1") == 0
    assert '"delta_ap": {"Cls": null}' in capsys.readouterr().out


def test_images_without_a_true_object_have_nothing_to_miss(folder, tmp_path, capsys):
    truth = json.loads((folder / "truth.json").read_text())
    truth["images"].insert(0, {**truth["images"].pop(), "id": 0})
    (folder / "first.json").write_text(json.dumps(truth))
    assert blame(folder, tmp_path, "--max-images", "1", truth="first.json") == 0
    assert "there are no true objects in these images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--iou", "0"), "--iou 0 is no share"),
        (("--score-threshold", "2"), "--score-threshold 2 is no score"),
        (("--max-images", "0"), "--max-images 0 leaves nothing to do"),
        (("--budget", "7"), "--budget"),
    ],
)
def test_wrong_options_are_refused(folder, tmp_path, options, message, capsys):
    assert blame(folder, tmp_path, *options) == 2
    assert message in capsys.readouterr().err


def test_data_of_another_model_are_refused(folder, tmp_path, capsys):
    truth = change_classes(folder, "three.json", [(1, "cat"), (2, "cow"), (5, "dog")])
    assert blame(folder, tmp_path, truth=truth) == 2
    assert "three.json has 3 classes, but the model 2" in capsys.readouterr().err


def test_a_config_without_registered_evaluation_data_asks_for_files(folder, tmp_path, capsys):
    words = ["--config-file", str(folder / "sparse.py"), "--weights", str(folder / "sparse.pth")]
    assert main(["blame", *words, "--output", str(tmp_path), "--opts", "dataloader.test.dataset.names=nowhere"]) == 2
    assert "give --truth and --images" in capsys.readouterr().err
    assert main(["blame", *words, "--output", str(tmp_path), "--truth", "a.json"]) == 2
    assert "--truth and --images go together" in capsys.readouterr().err


def run_config(folder, tmp_path, **parts):
    """Write the config.yaml of a training on the made data; return the words that name it and the weights."""
    cfg = load_config(str(folder / "sparse.py"))
    paths = {f"{part}_{what}": str(folder / name) for part in parts for what, name in parts[part].items()}
    use_own_data(cfg, paths)
    kind_of(cfg).save(tmp_path / "config.yaml")
    return ["--config-file", str(tmp_path / "config.yaml"), "--weights", str(folder / "sparse.pth")]


def test_the_validation_data_of_a_training_are_judged_and_named(folder, tmp_path, capsys):
    data = {"json": "truth.json", "images": "images"}
    words = run_config(folder, tmp_path, train=data, val=data)
    assert main(["blame", *words, "--output", str(tmp_path / "out")]) == 0
    record, _ = results(tmp_path / "out")
    assert record["data"].startswith("own_val_truth_")
    assert f"true boxes: {record['data']}\n" in capsys.readouterr().out
    assert blame(folder, tmp_path / "file") == 0
    of_file, _ = results(tmp_path / "file")
    assert of_file["data"] == str(folder / "truth.json")
    assert of_file["verdicts"] == record["verdicts"]


def test_a_training_without_validation_data_is_not_judged_on_its_own_images(folder, tmp_path, capsys):
    words = run_config(folder, tmp_path, train={"json": "truth.json", "images": "images"})
    assert main(["blame", *words, "--output", str(tmp_path / "out")]) == 2
    assert "the config names no evaluation data; give --truth and --images" in capsys.readouterr().err


def test_of_several_evaluation_sets_the_first_is_judged_and_the_others_are_named(folder, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(YAML)
    for name in ("one", "two"):
        register_coco_files(
            name=name, annotations=folder / "truth.json", images=folder / "images", class_names=["cat", "dog"]
        )
    words = ["--config-file", str(tmp_path / "tiny.yaml"), "--weights", str(tmp_path / "yaml.pth")]
    overrides = ["MODEL.DETR.NUM_CLASSES", "2", "DATASETS.TEST", "('one', 'two')"]
    torch.save({"model": build_detector(load_config(words[1], overrides), device="cpu").state_dict()}, words[3])
    assert main(["blame", *words, "--output", str(tmp_path / "out"), "--opts", *overrides]) == 0
    record, _ = results(tmp_path / "out")
    assert (record["data"], record["other_data"]) == ("one", ["two"])
    assert "the config's other evaluation data are left out: two; give --truth and --images" in capsys.readouterr().out


def test_as_many_detections_of_a_class_count_as_an_image_has_boxes(folder, tmp_path, monkeypatch):
    """By hand: 103 true boxes of one class and a crowd, so 103 detections count, in the verdicts and for TIDE."""
    limits = set()

    def noting(function):
        return lambda *args, limit, **options: limits.add(limit) or function(*args, limit=limit, **options)

    monkeypatch.setattr(verdicts_module, "counted", noting(verdicts_module.counted))
    monkeypatch.setattr(tide_module, "tide_errors", noting(tide_module.tide_errors))
    assert blame(folder, tmp_path / "few", "--score-threshold", "0") == 0
    truth = json.loads((folder / "truth.json").read_text())
    truth["annotations"] = [{**truth["annotations"][0], "id": number} for number in range(1, 105)]
    truth["annotations"][-1]["iscrowd"] = 1
    (folder / "many.json").write_text(json.dumps(truth))
    assert results(tmp_path / "few")[0]["max_detections"] == 100
    assert limits == {100}
    limits.clear()
    assert blame(folder, tmp_path / "many", "--score-threshold", "0", truth="many.json") == 0
    assert results(tmp_path / "many")[0]["max_detections"] == 103
    assert limits == {103}


def test_with_the_configs_data_as_many_detections_count_as_in_its_evaluation(folder, tmp_path):
    data = {"json": "truth.json", "images": "images"}
    words = run_config(folder, tmp_path, train=data, val=data)
    override = "dataloader.evaluator.max_dets_per_image=7"
    assert main(["blame", *words, "--output", str(tmp_path / "out"), "--opts", override]) == 0
    assert results(tmp_path / "out")[0]["max_detections"] == 7
