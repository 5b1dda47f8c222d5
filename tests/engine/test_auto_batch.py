"""The largest batch that fits is found, its learning rate follows a stated rule, and a resume keeps both."""

import logging
import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from omegaconf import OmegaConf
from torch import nn

from sparse_detr.config import add_detr_config
from sparse_detr.data.loader import build_train_loader
from sparse_detr.engine import auto_batch
from sparse_detr.engine.auto_batch import (
    batch_from_memory,
    choose_batch,
    largest_image,
    largest_that_fits,
    peak_of_step,
    rate_rule,
    scaled_rate,
)
from sparse_detr.engine.training import train
from sparse_detr.errors import UserError
from tests.engine.test_resume import assert_same_checkpoints, final, train_interrupted
from tests.engine.toys import toy_run
from tests.modeling.tiny import build, picture


@pytest.fixture
def listen(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sparse_detr"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize(("most", "cap", "tried"), [(5, 64, [1, 2, 4, 8, 6, 5]), (64, 64, [1, 2, 4, 8, 16, 32, 64])])
def test_sizes_are_doubled_and_then_the_gap_is_halved(most, cap, tried):
    seen = []
    assert largest_that_fits(lambda number: (seen.append(number), number <= most)[1], cap) == most
    assert seen == tried


@pytest.mark.parametrize("most", range(12))
@pytest.mark.parametrize("cap", [1, 2, 7, 8, 9])
def test_the_largest_size_up_to_the_cap_is_found(most, cap):
    def fits(number):
        assert number <= cap
        return number <= most

    assert largest_that_fits(fits, cap) == min(most, cap)


@pytest.mark.parametrize(
    ("one", "two", "budget", "cap", "expected"),
    [
        (100, 130, 220, 64, 5),  # 100 + 4 * 30 = 220
        (100, 130, 219, 64, 4),
        (100, 130, 100, 64, 1),
        (100, 130, 99, 64, 0),
        (100, 130, 10**9, 64, 64),
        (100, 100, 110, 8, 8),  # an image that needs nothing more
    ],
)
def test_memory_grows_by_the_same_for_each_image(one, two, budget, cap, expected):
    assert batch_from_memory(one, two, budget, cap) == expected


def test_the_learning_rate_follows_the_rule_by_hand():
    assert scaled_rate(1e-4, 4, 16, "sqrt") == pytest.approx(2e-4)
    assert scaled_rate(1e-4, 4, 16, "linear") == pytest.approx(4e-4)
    assert scaled_rate(1e-4, 16, 4, "sqrt") == pytest.approx(5e-5)
    assert scaled_rate(1e-4, 4, 16, "config: sqrt") == 1e-4


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({"_target_": "torch.optim.AdamW"}, "sqrt"),
        ({"_target_": "torch.optim.SGD"}, "linear"),
        ({"_target_": "torch.optim.AdamW", "params": {"batch_size_scaling": "none"}}, "sqrt"),
        ({"_target_": "torch.optim.AdamW", "params": {"batch_size_scaling": "linear"}}, "config: linear"),
    ],
)
def test_the_rule_is_that_of_the_optimizer_unless_the_config_has_its_own(optimizer, expected):
    assert rate_rule(OmegaConf.create({"optimizer": optimizer})) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, "sqrt"), ({"OPTIMIZER": "SGD"}, "linear"), ({"BATCH_SIZE_SCALING": "sqrt"}, "config: sqrt")],
)
def test_a_yaml_config_has_the_same_rule(values, expected):
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.SOLVER.update(values)
    assert rate_rule(cfg) == expected


@dataclass
class PickPicture:
    """A mapper with true boxes, of images of two sizes."""

    def __call__(self, record):
        sizes = ((64, 96), (96, 64))
        return {**picture(*sizes[record["image_id"] % 2], seed=record["image_id"]), **record}


class Brightness(nn.Module):
    """Learns the number of boxes from the mean colour of an image, with dropout."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, batch):
        colours = torch.stack([item["image"].float().mean((1, 2)) / 255 for item in batch])
        numbers = torch.tensor([[float(len(item["instances"]))] for item in batch])
        return {"loss_number": (self.head(F.dropout(colours, 0.5)) - numbers).square().mean()}


def config(**train_settings):
    text = {
        "train": {"batch": "auto", **train_settings},
        "dataloader": {"train": {"total_batch_size": 2}},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-4},
    }
    return OmegaConf.create(text)


def detector_run(folder, cfg, *, images=6, **settings):
    records = [
        {"image_id": i, "file_name": f"{i}.png", "annotations": [{"bbox": [0, 0, 8, 8], "bbox_mode": 0}] * i}
        for i in range(images)
    ]
    run = toy_run(folder, max_iter=3, checkpointer={"period": 1}, **settings)

    def loader():
        size = cfg.dataloader.train.total_batch_size
        return build_train_loader(dataset=records, mapper=PickPicture(), total_batch_size=size, seed=3)

    return replace(
        run,
        config=cfg,
        build_model=Brightness,
        build_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=cfg.optimizer.lr),
        build_train_loader=loader,
    )


def test_the_probe_has_the_largest_sides_and_the_most_boxes(tmp_path):
    image = largest_image(detector_run(tmp_path, config()).build_train_loader())
    assert image["image"].shape == (3, 96, 96)
    assert len(image["instances"]) == 5
    assert image["instances"].gt_boxes.nonempty().all()
    assert image["instances"].gt_boxes.tensor.max() <= 96


@pytest.fixture
def memory(monkeypatch):
    """Let a step hold 100 bytes, and 10 for each image."""
    monkeypatch.setattr(auto_batch, "peak_of_step", lambda probe, number: (probe.step(number), 100.0 + 10 * number)[1])
    monkeypatch.setattr(auto_batch, "resident_memory", lambda: 100.0)
    monkeypatch.setattr(auto_batch, "free_memory", lambda: 50.0)  # 80 % of it for 4 images


def test_batch_and_learning_rate_are_written_into_the_config_and_told(tmp_path, memory, listen):
    cfg = config()
    run = replace(detector_run(tmp_path, cfg), build_model=lambda: build("sparse", dtype=torch.float32).train())
    choose_batch(run)
    assert cfg.dataloader.train.total_batch_size == 4
    assert cfg.optimizer.lr == pytest.approx(1e-4 * math.sqrt(2))
    assert cfg.train.batch is None
    assert (
        "batch of 4 images, of 96x96 pixels, the most that fits into 80% of the free memory; "
        "learning rate 0.0001 for 2 images -> 0.000141 for 4 (sqrt rule)" in listen.text
    )


def test_a_yaml_config_gets_and_keeps_the_batch_too(tmp_path, memory):
    def yacs(**solver):
        cfg = get_cfg()
        add_detr_config(cfg)
        cfg.SOLVER.update({"BATCH": "auto", "IMS_PER_BATCH": 1, "BASE_LR": 0.5, "OPTIMIZER": "SGD", **solver})
        return cfg

    cfg = yacs()
    run = replace(detector_run(tmp_path, config(batch=None)), config=cfg)
    train(run)
    assert (cfg.SOLVER.BATCH, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (None, 4, 2.0)
    resumed = yacs()
    choose_batch(replace(run, config=resumed), str(tmp_path / "model_final.pth"))
    assert (resumed.SOLVER.BATCH, resumed.SOLVER.IMS_PER_BATCH, resumed.SOLVER.BASE_LR) == (None, 4, 2.0)


def test_a_config_without_a_batch_to_start_from_is_refused(tmp_path):
    cfg = config()
    del cfg.dataloader.train["total_batch_size"]
    with pytest.raises(UserError, match=r"needs dataloader.train.total_batch_size and optimizer.lr to start from"):
        choose_batch(replace(detector_run(tmp_path, config()), config=cfg))


def test_a_much_larger_batch_is_told_with_a_warning(tmp_path, memory, monkeypatch, listen):
    cfg = config()
    cfg.dataloader.train.total_batch_size = 1
    monkeypatch.setattr(auto_batch, "free_memory", lambda: 1e12)
    choose_batch(detector_run(tmp_path, cfg))
    assert "6 images are more than 4 times the config's 1: warm up for longer" in listen.text


def test_a_checkpoint_of_an_older_version_has_no_batch(tmp_path):
    torch.save({"model": {}}, tmp_path / "old.pth")
    with pytest.raises(UserError, match=r"old.pth does not say its batch.*in place of train.batch=auto"):
        choose_batch(detector_run(tmp_path, config()), str(tmp_path / "old.pth"))


def test_a_config_without_the_wish_stays_as_it_is(tmp_path):
    cfg = config(batch=None)
    choose_batch(detector_run(tmp_path, cfg))
    assert cfg == config(batch=None)


def test_averaged_weights_take_memory_too(tmp_path, memory, monkeypatch):
    run = detector_run(tmp_path, config(), ema_decay=0.9)
    monkeypatch.setattr(auto_batch, "free_memory", lambda: 1e12)
    choose_batch(run)
    assert run.config.dataloader.train.total_batch_size == 6  # all images there are
    weights = sum(weight.numel() * 4 for weight in run.build_model().parameters())
    assert auto_batch.Probe(run, {}).bytes_beside == weights


def test_the_training_is_that_of_a_config_with_this_batch_and_rate(tmp_path, memory):
    chosen = config()
    torch.manual_seed(5)
    train(detector_run(tmp_path / "auto", chosen))
    given = config(batch=None)
    given.dataloader.train.total_batch_size, given.optimizer.lr = 4, chosen.optimizer.lr
    torch.manual_seed(5)
    train(detector_run(tmp_path / "given", given))
    assert_same_checkpoints(final(tmp_path / "auto"), final(tmp_path / "given"))
    saved = OmegaConf.load(tmp_path / "auto" / "config.yaml")
    assert (saved.dataloader.train.total_batch_size, saved.optimizer.lr) == (4, chosen.optimizer.lr)


def test_a_resume_keeps_the_batch_whatever_the_memory_then(tmp_path, memory, monkeypatch, listen):
    torch.manual_seed(5)
    train(detector_run(tmp_path / "whole", config()))
    torch.manual_seed(5)
    train_interrupted(detector_run(tmp_path / "parts", config()), monkeypatch, before=2)
    monkeypatch.setattr(auto_batch, "free_memory", lambda: 30.0)
    torch.manual_seed(99)
    cfg = config()
    train(detector_run(tmp_path / "parts", cfg), resume_last=True)
    assert cfg.dataloader.train.total_batch_size == 4
    assert "batch of 4 images, as in " in listen.text
    assert_same_checkpoints(final(tmp_path / "whole"), final(tmp_path / "parts"))


def test_memory_for_not_even_one_image_is_an_error_with_the_remedy(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(auto_batch, "free_memory", lambda: 1.0)
    with pytest.raises(UserError, match="not even a batch of one image fits.*lower the image sizes"):
        choose_batch(detector_run(tmp_path, config()))


def test_a_loader_of_another_kind_is_refused(tmp_path):
    run = replace(detector_run(tmp_path, config()), build_train_loader=list)
    with pytest.raises(UserError, match="needs dataloader.train by sparse_detr.data.loader.build_train_loader"):
        choose_batch(run)


class Allocates:
    """A probe whose step holds 40 MB an image."""

    def step(self, number):
        torch.ones(number * 10**7)


@pytest.mark.skipif(not auto_batch.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_of_a_step_is_measured():
    peak_of_step(Allocates(), 1)
    one, two, again = (peak_of_step(Allocates(), number) for number in (1, 2, 1))
    assert two - one == pytest.approx(4e7, rel=0.2)
    assert again < two
    assert auto_batch.free_memory() > 2**20
    assert auto_batch.resident_memory() <= one + 2**24


class OnGpu:
    """A probe that does not fit from 4 images on, and whose third image is above the limit."""

    def step(self, number):
        self.number = number
        if number > 3:
            raise torch.OutOfMemoryError("full")


def test_a_step_without_memory_and_one_above_the_limit_do_not_fit(monkeypatch):
    probe, device = OnGpu(), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 * probe.number)
    fits = [number for number in range(1, 6) if auto_batch._gpu_has_room(probe, device, number, 250)]
    assert fits == [1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_is_chosen_on_a_gpu(tmp_path):
    cfg = config()
    run = detector_run(tmp_path, cfg, device="cuda")
    run = replace(run, build_model=lambda: build("sparse", dtype=torch.float32).cuda().train())
    choose_batch(run)
    assert cfg.dataloader.train.total_batch_size == 6
