"""`Predictor("model.onnx")` gives what the predictor of the config gives, and refuses by name what a file cannot do."""

import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tests.export.tiny as tiny
from sparse_detr import Predictor
from sparse_detr.cli.main import main
from sparse_detr.config.kinds import kind_of
from sparse_detr.errors import UserError
from sparse_detr.export import ExportedFile, parity
from tests.export.test_files import NEEDS_ONNX

ROOT = Path(__file__).parents[2]
FIXED = ["96", "160"]
PICTURES = {
    "wide.png": (48, 72),
    "tall.png": (90, 60),
    "square.png": (64, 64),
    "long.png": (40, 88),
    "big.png": (99, 70),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with pictures, a config and weights, and a TorchScript file that the command has written."""
    folder = tmp_path_factory.mktemp("export")
    generator = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for name, size in PICTURES.items():
        pixels = generator.integers(0, 256, (*(-(-side // 8) for side in size), 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / "pictures" / name)
    cfg = tiny.make_config("sparse", num_detections=10)
    kind_of(cfg).save(folder / "tiny.yaml")
    torch.save({"model": tiny.build("sparse", num_detections=10).state_dict()}, folder / "tiny.pth")
    assert export(folder, "model.torchscript", "--fixed-size", *FIXED) == 0
    return folder


def export(folder, output, *options):
    arguments = {"config-file": "tiny.yaml", "weights": "tiny.pth", "output": output, "images": "pictures"}
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(folder / value))]
    return main(["export", *words, *options])


@pytest.fixture(scope="module")
def plain(folder):
    return Predictor(folder / "tiny.yaml", folder / "tiny.pth", class_names=list("abcde"))


@pytest.fixture(scope="module")
def exported(folder):
    return Predictor(folder / "model.torchscript")


def pictures(folder):
    return [str(folder / "pictures" / name) for name in PICTURES]


def assert_near(found, expected):
    outcome = parity.compare(found, expected, images=len(found), sizes=())
    assert outcome.detections > 0
    assert outcome.without_partner == 0, outcome
    assert [one.image_size for one in found] == [other.image_size for other in expected]


def test_it_gives_the_detections_of_the_predictor_of_the_config(folder, plain, exported):
    """The backbone does not see where its image ends, so padding to the fixed size changes nothing."""
    assert isinstance(exported, Predictor)
    images = pictures(folder)
    assert_near(exported(images), plain(images))
    assert_near(exported(images, batch_size=5), plain(images))
    assert_near([exported(images[0])], [plain(images[0])])
    array = np.asarray(Image.open(images[0]))
    assert_near([exported(array[..., ::-1].copy(), channel_order="BGR")], [plain(images[0])])


def test_thresholds_and_counts_are_options_of_a_call(folder, exported):
    image = pictures(folder)[0]
    assert len(exported(image, top_k=3)) == 3
    threshold = float(exported(image).scores[4])
    assert len(exported(image, score_threshold=threshold)) == 5


def test_the_file_says_what_it_is(exported):
    facts = exported.metadata
    assert (facts.config, facts.num_classes, facts.channel_order) == ("tiny.yaml", 5, "RGB")
    assert (facts.short_size, facts.max_size, facts.fixed_size) == (64, 160, [96, 160])
    assert (facts.keep_ratio, facts.num_detections) == (0.3, 10)
    assert not exported.is_dense


def test_class_names_can_be_given(folder, exported):
    assert exported.class_names == []
    names = Predictor(folder / "model.torchscript", class_names=list("abcde")).class_names
    assert names == list("abcde")
    with pytest.raises(UserError, match="class_names has 2 names, but .* has 5 classes"):
        Predictor(folder / "model.torchscript", class_names=["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "tiny.pth"}, "holds its weights; leave weights out"),
        ({"ema": True}, "holds its weights; leave ema out"),
        ({"device": "cuda"}, "runs on the CPU, not on 'cuda'"),
        ({"budget": 0.5}, "budget is 0.5, but the file's is fixed: 0.3; .* export another file with"),
        ({"top_k": 11}, "top_k is 11, but the file gives at most 10"),
        ({"colour": 1}, "there is no option 'colour'"),
    ],
)
def test_what_a_file_cannot_do_is_named(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        Predictor(folder / "model.torchscript", **arguments)


def test_there_are_no_other_outputs_than_detections(folder, exported):
    with pytest.raises(UserError, match="gives detections alone; for scores and tokens make a Predictor of the config"):
        exported.outputs(pictures(folder)[0])


def test_the_files_own_budget_may_be_named(folder):
    assert Predictor(folder / "model.torchscript", budget=0.3).options.budget == 0.3


@pytest.mark.parametrize(("fixed", "share"), [("mass:0.9", 1.0), ("0.3+decoder:1", 0.3), ("levels:0.25,0.5,1", 0.4)])
def test_a_share_is_not_the_budget_of_a_file_that_has_more_than_a_share(folder, monkeypatch, fixed, share):
    """The share of the first layer, which the file also says, may be that number."""
    predictor = Predictor(folder / "model.torchscript")
    monkeypatch.setattr(predictor, "metadata", replace(predictor.metadata, budget=fixed, keep_ratio=share))
    image = pictures(folder)[0]
    with pytest.raises(UserError, match=re.escape(f"budget is {share}, but the file's is fixed: {fixed}; leave")):
        predictor(image, budget=share)
    assert len(predictor(image, budget=fixed)) > 0


def test_a_time_is_refused_in_a_call_of_a_file_too(folder, exported):
    with pytest.raises(UserError, match="budget is ms:30, but the file's is fixed: 0.3"):
        exported(pictures(folder)[0], budget="ms:30")


def test_an_image_larger_than_the_file_takes_is_named(folder, exported):
    with pytest.raises(UserError, match="160 x 64 pixels after preprocessing, but the file takes at most 96 x 160"):
        exported(np.zeros((200, 80, 3), np.uint8))


def test_a_pickled_predictor_opens_the_file_again(folder, exported):
    again = pickle.loads(pickle.dumps(exported))
    image = pictures(folder)[0]
    assert torch.equal(again(image).pred_boxes.tensor, exported(image).pred_boxes.tensor)


def test_an_existing_file_is_kept_without_force(folder, capsys):
    before = (folder / "model.torchscript").read_bytes()
    assert export(folder, "model.torchscript", "--fixed-size", *FIXED) == 2
    assert "exists; give another name, or --force" in capsys.readouterr().err
    assert (folder / "model.torchscript").read_bytes() == before


def test_the_command_exports_the_budget_that_it_is_given(folder, capsys):
    assert export(folder, "few.torchscript", "--fixed-size", *FIXED, "--budget", "0.1") == 0
    assert "detections agree on 5 images" in capsys.readouterr().out
    few = Predictor(folder / "few.torchscript")
    assert few.metadata.keep_ratio == 0.1
    images = pictures(folder)
    expected = Predictor(folder / "tiny.yaml", folder / "tiny.pth", class_names=list("abcde"), budget=0.1)(images)
    assert_near(few(images), expected)


def test_a_file_of_a_later_format_is_refused(folder, monkeypatch):
    monkeypatch.setattr("sparse_detr.export.metadata.FORMAT_VERSION", 0)
    with pytest.raises(UserError, match="was written by version .* whose files this version cannot read; update"):
        ExportedFile(folder / "model.torchscript")


TEXT = (ROOT / "docs/export.md").read_text()
(EXAMPLE,) = [block for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S) if "onnxruntime" in block]
RUN = """
import sys
sys.modules["sparse_detr"] = sys.modules["torch"] = sys.modules["detectron2"] = None  # their import fails
{example}
for batch in ([path] for path in sys.argv[1:]):
    for found in detect(batch, 0):
        np.save(batch[0] + ".npy", np.hstack([found[0], found[1][:, None], found[2][:, None]]))
together = detect(sys.argv[1:], 0)
np.save("together.npy", np.stack([np.hstack([boxes, scores[:, None], labels[:, None]])
                                  for boxes, scores, labels in together]))
"""


@pytest.mark.slow
@NEEDS_ONNX
def test_the_example_of_the_document_detects_what_the_predictor_does(folder, plain):
    """The command writes the file, the example runs it without this package and without PyTorch."""
    from detectron2.structures import Boxes, Instances

    assert export(folder, "model.onnx", "--force") == 0
    images = pictures(folder)
    subprocess.run([sys.executable, "-c", RUN.format(example=EXAMPLE), *images], check=True, cwd=folder)

    def instances(rows, size):
        rows = torch.from_numpy(rows)
        return Instances(size, pred_boxes=Boxes(rows[:, :4]), scores=rows[:, 4], pred_classes=rows[:, 5].long())

    expected = plain(images)
    sizes = [one.image_size for one in expected]
    alone = [instances(np.load(f"{image}.npy"), size) for image, size in zip(images, sizes, strict=True)]
    together = [instances(rows, size) for rows, size in zip(np.load(folder / "together.npy"), sizes, strict=True)]
    assert_near(alone, expected)
    assert_near(together, expected)
    assert_near(Predictor(folder / "model.onnx")(images), expected)
    for image in images:
        os.remove(f"{image}.npy")
