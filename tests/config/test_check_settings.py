"""Wrong settings are refused before anything is built, with the keys of their kind of config."""

import pytest
from detectron2.config import LazyConfig

from sparse_detr.config import load_config
from sparse_detr.config.run import make_run
from sparse_detr.errors import UserError
from tests.config.mutations import LAZY, YACS, broken_text, generator, keys_of, random_overrides
from tests.meta import meta_device

LAZY_FAULTS = {
    "train.log_period=0": "train.log_period=0 cannot be used; give a whole number, 1 or more",
    "train.vis_period=-1": "train.vis_period=-1 cannot be used; give a whole number, 0 or more",
    "train.checkpointer.period=0": "train.checkpointer.period=0 cannot be used",
    "train.checkpointer.max_to_keep=0": "train.checkpointer.max_to_keep=0 cannot be used",
    "train.accumulate=0": "train.accumulate=0 cannot be used",
    "train.max_iter=0": "train.max_iter=0 cannot be used",
    "train.max_iter=2.0": "train.max_iter=2.0 cannot be used; give a whole number",
    "train.max_iter=[1,2]": r"train.max_iter=\[1, 2\] cannot be used",
    "train.max_iter=true": "train.max_iter=True cannot be used",
    "train.device=gpu": "train.device=gpu cannot be used; give cpu, cuda or cuda:N",
    "train.seed=null": "train.seed=None cannot be used",
    "train.seed=4294967296": "train.seed=4294967296 cannot be used",
    "train.ema.decay=1.5": "train.ema.decay=1.5 cannot be used; give a number above 0 and below 1",
    "train.amp.dtype=int8": "train.amp.dtype=int8 cannot be used; give one of bf16, fp16",
    "train.amp=7": "train.amp is a group of settings",
    "train.amp=null": "train.amp=None cannot be used; give a group of settings",
    "train.clip_grad_norm=0": "train.clip_grad_norm=0 cannot be used; give a number above 0, or null",
    "train.output_dir=": "train.output_dir='' cannot be used; give a text that is not empty",
    "dataloader.train.num_workers=-1": "dataloader.train.num_workers=-1 cannot be used",
    "dataloader.test.num_workers=-1": "dataloader.test.num_workers=-1 cannot be used",
    "dataloader.train.total_batch_size=x": "dataloader.train.total_batch_size=x cannot be used",
    "dataloader.train.mapper.augmentations.short_sizes=[0]": r"short_sizes=\[0\] cannot be used",
    "dataloader.train.mapper.augmentations.crop_range=[1]": r"crop_range=\[1\] cannot be used; give a list of 2 values",
    "dataloader.evaluator.max_dets_per_image=0": "max_dets_per_image=0 cannot be used",
    "optimizer.lr=0": "optimizer.lr=0 cannot be used",
    "optimizer.lr=inf": "optimizer.lr=inf cannot be used",
    "optimizer.betas=0.9": "optimizer.betas",
    "optimizer.params.batch_size_scaling=cubic": "cubic cannot be used; give one of none, sqrt, linear",
    "lr_multiplier.warmup_iters=-1": "lr_multiplier.warmup_iters=-1 cannot be used",
    "lr_multiplier.max_iter=${train.x}": "lr_multiplier.max_iter",
    "model.encoder.layers.count=x": "model.encoder.layers.count=x cannot be used; give a whole number",
    "model.selector.budget.keep_ratio=2": "keep_ratio=2 cannot be used; give a number above 0 and at most 1",
    "model.queries.num_queries=0": "model.queries.num_queries=0 cannot be used",
    "model.num_classes=0": "model.num_classes=0 cannot be used",
    "model.tokenizer=3": "model.tokenizer is a group of settings",
    "model.tokenizer.padding=left": "model.tokenizer.padding=left cannot be used; give one of exact, released",
    "model.encoder.layers.module.self_attn.embed_dim=30": "embed_dim=30 cannot be used; give a multiple of",
    "model.decoder.layers.module.ffn=null": "model.decoder.layers.module.ffn=None cannot be used",
    "model.encoder._target_=nowhere.Encoder": "model.encoder._target_=nowhere.Encoder cannot be imported",
    "model.encoder._target_=sparse_detr.modeling.encoder.Encoder": (
        "^model.encoder._target_=sparse_detr.modeling.encoder.Encoder is not in this version of sparse_detr; in place "
        "of a config.yaml of another version give the config that its training was started with .*: its checkpoints"
    ),
    "model.postprocess.suppress_duplicates=0": "suppress_duplicates=0 cannot be used; give a number above 0",
    "model.postprocess.suppress_duplicates=a": "model.postprocess.suppress_duplicates=a cannot be used",
}

YACS_FAULTS = {
    ("SOLVER.MAX_ITER", "0"): "SOLVER.MAX_ITER 0 cannot be used; give a whole number, 1 or more",
    ("VIS_PERIOD", "-1"): "VIS_PERIOD -1 cannot be used; give a whole number, 0 or more",
    ("SOLVER.MAX_ITER", "2.0"): "SOLVER.MAX_ITER",
    ("SOLVER.MAX_ITER", "[1,2]"): "SOLVER.MAX_ITER",
    ("SOLVER.CHECKPOINT_PERIOD", "0"): "SOLVER.CHECKPOINT_PERIOD 0 cannot be used",
    ("SOLVER.MAX_TO_KEEP", "0"): "SOLVER.MAX_TO_KEEP 0 cannot be used",
    ("SOLVER.ACCUMULATE", "0"): "SOLVER.ACCUMULATE 0 cannot be used",
    ("SOLVER.EMA.DECAY", "1.5"): "SOLVER.EMA.DECAY 1.5 cannot be used",
    ("SOLVER.AMP.DTYPE", "int8"): "SOLVER.AMP.DTYPE int8 cannot be used",
    ("SOLVER.IMS_PER_BATCH", "0"): "SOLVER.IMS_PER_BATCH 0 cannot be used",
    ("SOLVER.LR_SCHEDULER_NAME", "Cosine"): "SOLVER.LR_SCHEDULER_NAME Cosine cannot be used; give one of Warmup",
    ("SOLVER.STEPS", "(-1,)"): r"SOLVER.STEPS \(-1,\) cannot be used",
    ("MODEL.DEVICE", "gpu"): "MODEL.DEVICE gpu cannot be used; give cpu, cuda or cuda:N",
    ("MODEL.META_ARCHITECTURE", "YOLO"): "MODEL.META_ARCHITECTURE YOLO cannot be used; give one of .*SparseDETR",
    ("MODEL.BACKBONE.NAME", "vgg"): "MODEL.BACKBONE.NAME vgg cannot be used; give one of .*build_resnet_backbone",
    ("SEED", "None"): "SEED None cannot be used",
    ("DATALOADER.NUM_WORKERS", "-1"): "DATALOADER.NUM_WORKERS -1 cannot be used",
    ("TEST.DETECTIONS_PER_IMAGE", "0"): "TEST.DETECTIONS_PER_IMAGE 0 cannot be used",
    ("TEST.SUPPRESS_DUPLICATES", "1.5"): "TEST.SUPPRESS_DUPLICATES 1.5 cannot be used; give a number above 0",
    ("TEST.SUPPRESS_DUPLICATES", "True"): "TEST.SUPPRESS_DUPLICATES True cannot be used",
    ("MODEL.DETR.ENCODER_LAYERS", "x"): "MODEL.DETR.ENCODER_LAYERS x cannot be used",
    ("MODEL.DETR.KEEP_RATIO", "2"): "MODEL.DETR.KEEP_RATIO 2.0 cannot be used",
    ("MODEL.DETR.NUM_QUERIES", "0"): "MODEL.DETR.NUM_QUERIES 0 cannot be used",
    ("MODEL.DETR.EMBED_DIM", "30"): "MODEL.DETR.EMBED_DIM 30 cannot be used; give a multiple of",
    ("MODEL.DETR.SCORER", "best"): "scorer must be attention_map, objectness or random, got 'best'",
    ("SOLVER", "x"): "SOLVER x",
    ("SOLVER.MAX_ITER.X", "1"): "SOLVER.MAX_ITER.X 1",
}


@pytest.mark.parametrize("override", LAZY_FAULTS)
def test_a_lazy_setting_that_cannot_be_used_is_refused_by_key_and_value(override):
    with pytest.raises(UserError, match=LAZY_FAULTS[override]):
        load_config(str(LAZY), [override])


@pytest.mark.parametrize("override", YACS_FAULTS, ids=" ".join)
def test_a_yacs_setting_that_cannot_be_used_is_refused_by_key_and_value(override):
    with pytest.raises(UserError, match=YACS_FAULTS[override]):
        load_config(str(YACS), override)


@pytest.mark.parametrize(
    "override",
    [
        *("train.clip_grad_norm=null", "train.checkpointer.max_to_keep=null", "train.seed=-1", "train.eval_period=0"),
        *("dataloader.train.mapper.augmentations.crop_range=null", "train.device=cuda:1", "optimizer.lr=1"),
        *("dataloader.test.dataset.names=[trees_val]", "lr_multiplier.end_factor=0.1", "model.queries.num_queries=7"),
        *("optimizer.params.norm_weight_decay=0.0", "model.pixel_mean=[1,2,3]", "optimizer.betas=[0.5,0.9]"),
    ],
)
def test_a_lazy_setting_that_can_be_used_passes(override):
    make_run(load_config(str(LAZY), [override]))


@pytest.mark.parametrize(
    "override",
    [
        *(("SOLVER.CLIP_GRAD_NORM", "0.0"), ("SOLVER.MAX_TO_KEEP", "None"), ("SEED", "-1"), ("SOLVER.STEPS", "()")),
        *(("SOLVER.BACKBONE_MULTIPLIER", "1"), ("MODEL.DETR.KEEP_RATIO", "1"), ("MODEL.BACKBONE.FREEZE_AT", "0")),
    ],
    ids=" ".join,
)
def test_a_yacs_setting_that_can_be_used_passes(override):
    make_run(load_config(str(YACS), override))


def test_settings_that_python_code_changes_are_checked_when_a_run_is_made():
    cfg = load_config(str(LAZY))
    cfg.train.accumulate = 0
    with pytest.raises(UserError, match="train.accumulate=0"):
        make_run(cfg)


def test_a_model_that_cannot_be_built_is_named_by_its_innermost_part():
    cfg = load_config(str(LAZY))
    cfg.model.encoder.layers.module.ffn.colour = "red"
    with pytest.raises(UserError, match="^model.encoder.layers.module.ffn cannot be built: .*'colour'"):
        make_run(cfg).build_model()


def test_a_config_without_a_model_to_make_is_refused():
    cfg = load_config(str(LAZY))
    del cfg.model["_target_"]
    with pytest.raises(UserError, match="model has no _target_"):
        make_run(cfg).build_model()


@pytest.mark.parametrize("path", [LAZY, YACS], ids=["lazy", "yacs"])
def test_any_mutated_setting_is_used_or_refused_by_a_users_error(path):
    rng, cfg = generator(20), load_config(str(path))
    keys, passed = keys_of(cfg), 0
    for _ in range(150):
        overrides = random_overrides(rng, cfg, keys)
        try:
            changed = load_config(str(path), overrides)
            make_run(changed)
            if passed % 8 == 0:
                assert builds(changed), overrides
        except UserError:
            continue
        passed += 1
    assert passed > 5


def builds(cfg):
    """Build model, optimiser and schedule without memory for weights; return True, or raise a `UserError`."""
    if path := getattr(cfg, "MODEL", None):
        path.DEVICE = "meta"
    else:
        cfg.train.device = "meta"
    run = make_run(cfg)
    with meta_device():
        model = run.build_model()
    return run.build_schedule(run.build_optimizer(model)) is not None


@pytest.mark.parametrize("path", [LAZY, YACS], ids=["lazy", "yacs"])
def test_any_broken_file_is_used_or_refused_by_a_users_error(path, tmp_path):
    rng, text, refused = generator(21), make_run(load_config(str(path))).config_text, 0
    for _ in range(60):
        file = tmp_path / f"broken.{rng.choice(('yaml', 'yml', 'py', 'txt') if rng.random() < 0.2 else ('yaml',))}"
        file.write_bytes(broken_text(rng, text))
        try:
            make_run(load_config(str(file)))
        except UserError:
            refused += 1
    assert refused > 10


def test_a_saved_config_passes_the_checks_like_the_original(tmp_path):
    LazyConfig.save(load_config(str(LAZY)), str(tmp_path / "config.yaml"))
    make_run(load_config(str(tmp_path / "config.yaml")))
    (tmp_path / "yacs.yaml").write_text(load_config(str(YACS)).dump())
    make_run(load_config(str(tmp_path / "yacs.yaml")))
