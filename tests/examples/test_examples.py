"""Every example runs where its package can be had; what it finds is what the predictor finds."""

import json
import shutil
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_detr import Predictor
from sparse_detr.config import load_config
from sparse_detr.config.run import make_run
from tests.test_predictor import make_config, make_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = list("abcde")


def load(name):
    spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a packed detector that is sure of itself, and two pictures."""
    folder = tmp_path_factory.mktemp("examples")
    weights = make_weights(make_config(), folder / "weights.pth")
    content = torch.load(weights, weights_only=True)
    for name, value in content["model"].items():
        if name.endswith("class_embed.bias"):
            value += 8
    torch.save(content, weights)
    Predictor(make_config(), weights, class_names=NAMES).save(folder / "detector")
    (folder / "photos").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")
    return folder


@pytest.fixture
def expected(folder):
    predictor = Predictor(folder / "detector", score_threshold=0.3)
    return [predictor(folder / "photos" / f"{index}.png") for index in range(2)]


def test_supervision_counts_and_draws_what_the_predictor_finds(folder, expected, tmp_path):
    pytest.importorskip("supervision")
    counts = load("with_supervision").main(folder / "detector", folder / "photos/0.png", tmp_path / "out.png")
    labels = expected[0].pred_classes.tolist()
    assert len(labels) > 0
    assert counts == {NAMES[label]: labels.count(label) for label in set(labels)}
    drawn, plain = (np.asarray(Image.open(path)) for path in (tmp_path / "out.png", folder / "photos/0.png"))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()


def test_sahi_merges_the_detections_of_slices(folder, tmp_path):
    pytest.importorskip("sahi")
    number = load("with_sahi").main(folder / "detector", folder / "photos/0.png", tmp_path / "out.json", side=64)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert len(rows) == number > 0
    assert {row["category_id"] for row in rows} <= set(range(5))


def test_ray_data_passes_its_batches_to_a_predictor(folder, expected, tmp_path):
    ray = pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        number = load("with_ray_data").main(str(folder / "detector"), str(folder / "photos"), str(tmp_path / "out"))
    finally:
        ray.shutdown()
    assert number == sum(map(len, expected)) > 0


def test_a_search_with_optuna_trains_and_goes_on(monkeypatch, tmp_path):
    pytest.importorskip("optuna")
    example = load("optuna_search")
    monkeypatch.setattr(example, "OUTPUT", tmp_path)
    commands = []
    monkeypatch.setattr(example.subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(example, "final_scores", lambda folder: {"AP": 50.0 - len(commands)})
    assert example.main(2, "config.py", "train.max_iter=5").best_value == 49.0
    study = example.main(1, "config.py")
    assert len(study.trials) == 3
    assert study.best_value == 49.0
    assert commands[0][:6] == [
        *commands[0][:1],
        "-m",
        "sparse_detr.train",
        "--config-file",
        "config.py",
        commands[0][5],
    ]
    assert commands[0][6] == "train.max_iter=5"
    assert commands[0][7].startswith("optimizer.lr=0.")
    assert commands[0][8].startswith("model.selector.budget.keep_ratio=0.")


def test_fiftyone_gets_truth_and_detections(folder, tmp_path):
    pytest.importorskip("fiftyone")
    truth = {
        "images": [{"id": 1, "file_name": "0.png", "width": 128, "height": 96}],
        "categories": [{"id": 3, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [32, 24, 64, 48]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(truth))
    (sample,) = load("with_fiftyone").main(folder / "photos", tmp_path / "a.json", tmp_path / "a.json")
    assert sample.truth.detections[0].bounding_box == [0.25, 0.25, 0.5, 0.5]
    assert sample.found.detections[0].label == "a"


def test_the_page_of_gradio_shows_the_detections_of_a_picture(folder):
    pytest.importorskip("gradio")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By

    driver_path = shutil.which("chromedriver")
    if driver_path is None:
        pytest.skip("there is no chromedriver on PATH")
    page = load("gradio_page").make_page(str(folder / "detector"))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, inbrowser=False)
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        browser.get(address)
        wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "input[type=file]"))
        upload = browser.find_elements(By.CSS_SELECTOR, "input[type=file]")[0]
        upload.send_keys(str(folder / "photos" / "0.png"))
        wait_for(lambda: shown(browser, By))
        next(b for b in browser.find_elements(By.TAG_NAME, "button") if b.text == "Detect").click()
        wait_for(lambda: len(shown(browser, By)) == 2)
        widths = [image.get_property("naturalWidth") for image in shown(browser, By)]
        browser.save_screenshot(str(folder / "page.png"))
    finally:
        browser.quit()
        page.close()
    assert widths == [128, 1280]  # the picture, and what was drawn


def shown(browser, by):
    """Return the pictures on the page."""
    found = browser.find_elements(by.CSS_SELECTOR, "img[src*='file=']")  # the others are symbols
    return [image for image in found if image.get_property("naturalWidth") > 0]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the page did not change in a minute"
        time.sleep(0.2)


def test_the_config_for_fine_tuning_describes_own_data(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (64, 48)).save(tmp_path / split / "0.jpg")
        content = {
            "images": [{"id": 1, "file_name": "0.jpg", "width": 64, "height": 48}],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {"id": label, "image_id": 1, "category_id": label, "bbox": [4, 5, 20, 20], "area": 400, "iscrowd": 0}
                for label in (1, 2)
            ],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    cfg = load_config(str(EXAMPLES / "finetune.py"), ["train.device=cpu"])
    run = make_run(cfg)
    (batch,) = [next(iter(run.evaluation_sets[0].build_loader()))]
    assert batch[0]["image_id"] == 1
    assert cfg.model.num_classes == 2
    assert cfg.train.output_dir == "output/finetune"
