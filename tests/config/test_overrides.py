"""Overrides: the value for a text is not parsed; other values are."""

import pytest
from detectron2.config import LazyConfig
from omegaconf import OmegaConf

from sparse_detr.config import load_config
from sparse_detr.config.run import make_run
from sparse_detr.errors import UserError
from tests.config.mutations import LAZY, YACS

TEXTS = (
    *(
        "~/w.pth",
        "/data/my run/w.pth",
        "/data/run=3/w.pth",
        "/a (1)/w.pth",
        "/a,b/w.pth",
        "/épée/日本.pth",
        r"C:\w\m.pth",
    ),
    *(
        "/#1/w.pth",
        "/lr=1e-4,bs=2/w",
        "/{x}/w",
        "[1]",
        "'/it''s.pth'",
        '"',
        "/a&b",
        "100%",
        "${HOME}/w",
        r"a\${b}",
        "a:b",
    ),
    *("", "null", "true", "1e5", "007", "(a)", "a;b", "@x", "a|b", "!b", "`x`", "$HOME/w", "${", "*?", "[a,b", "a\tb"),
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_not_parsed(text):
    cfg = load_config(str(LAZY), [f"train.init_checkpoint={text}"])
    assert cfg.train.init_checkpoint == text
    assert OmegaConf.to_container(cfg.train, resolve=True)["init_checkpoint"] == text
    yacs = load_config(str(YACS), ["MODEL.WEIGHTS", text])
    assert text == yacs.MODEL.WEIGHTS


def test_texts_are_equal_in_the_config_that_a_run_saves(tmp_path):
    small, saved = tmp_path / "small.py", tmp_path / "config.yaml"
    small.write_text("train = dict(init_checkpoint='')")
    for text in TEXTS:
        LazyConfig.save(load_config(str(small), [f"train.init_checkpoint={text}"]), str(saved))
        assert load_config(str(saved)).train.init_checkpoint == text


def test_the_saved_config_of_an_older_version_takes_settings_that_it_lacks(tmp_path):
    old = tmp_path / "config.yaml"
    LazyConfig.save(load_config(str(LAZY)), str(old))
    saved = OmegaConf.load(old)
    del saved.train["vis_period"]
    OmegaConf.save(saved, old)
    assert make_run(load_config(str(old))).settings.vis_period == 0
    assert make_run(load_config(str(old), ["train.vis_period=5"])).settings.vis_period == 5
    with pytest.raises(UserError, match=r"the config has no key 'train.vis_perod'"):
        load_config(str(old), ["train.vis_perod=5"])


def test_an_interpolation_of_an_existing_key_is_kept():
    cfg = load_config(str(LAZY), ["train.init_checkpoint=${train.output_dir}/w.pth", "train.output_dir=out"])
    assert cfg.train.init_checkpoint == "out/w.pth"


def test_other_values_are_parsed():
    cfg = load_config(str(LAZY), ["train.max_iter=7", "optimizer.betas=[0.5,0.9]", "train.clip_grad_norm=null"])
    assert cfg.train.max_iter == 7
    assert cfg.optimizer.betas == [0.5, 0.9]
    assert cfg.train.clip_grad_norm is None


def test_several_data_sets_may_be_named():
    cfg = load_config(str(LAZY), ["dataloader.train.dataset.names=[a,b]"])
    assert cfg.dataloader.train.dataset.names == ["a", "b"]


@pytest.mark.parametrize("value", ["(", "[1,", "a(b", "1,2", "{a", "a b=c'"])
def test_a_value_that_cannot_be_read_is_named(value):
    with pytest.raises(UserError, match="train.max_iter="):
        load_config(str(LAZY), [f"train.max_iter={value}"])


def test_the_home_folder_may_be_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert (
        make_run(load_config(str(LAZY), ["train.init_checkpoint=~/w.pth"])).settings.init_checkpoint == "/home/me/w.pth"
    )
    assert make_run(load_config(str(YACS), ["MODEL.WEIGHTS", "~/w.pth"])).settings.init_checkpoint == "/home/me/w.pth"


def test_a_whole_number_may_be_given_for_a_yacs_number():
    assert load_config(str(YACS), ["SOLVER.BACKBONE_MULTIPLIER", "1"]).SOLVER.BACKBONE_MULTIPLIER == 1.0


def test_both_kinds_keep_ten_checkpoints_by_default():
    for path in (LAZY, YACS):
        assert make_run(load_config(str(path))).settings.checkpointer["max_to_keep"] == 10
    cfg = load_config(str(LAZY))
    del cfg.train.checkpointer["max_to_keep"]
    assert make_run(cfg).settings.checkpointer["max_to_keep"] == 10
    assert make_run(load_config(str(YACS), ["SOLVER.MAX_TO_KEEP", "3"])).settings.checkpointer["max_to_keep"] == 3
