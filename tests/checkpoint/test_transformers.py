"""Files of Hugging Face's `transformers` give here what `transformers` gives."""

import json

import pytest
import torch
from detectron2.config import instantiate

from sparse_detr.checkpoint import convert_checkpoint, load_file
from sparse_detr.checkpoint.transformers_names import training_arguments
from sparse_detr.config import model_config
from sparse_detr.errors import UserError
from tests.modeling.tiny import shake

transformers = pytest.importorskip("transformers", reason="transformers is not installed: make setup installs it")

SIZES = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 6,
    "num_labels": 5,
}
DEFORMABLE = SIZES | {"encoder_n_points": 2, "decoder_n_points": 2, "two_stage_num_proposals": 7}


def own_resnet(*stages):
    """Return the options of the ResNet of `transformers`; the default is that of timm."""
    config = transformers.ResNetConfig(out_features=[f"stage{stage}" for stage in stages])
    return {"use_timm_backbone": False, "backbone_config": config}


def make(model, sizes, **options):
    """Build a model of `transformers` with random weights and statistics."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{model}Config")(**sizes, **options)
    public = getattr(transformers, f"{model}ForObjectDetection")(config)
    shake(public)
    for name, statistics in public.named_buffers():
        if name.endswith("running_var"):
            statistics.uniform_(0.5, 1.5)
    return public.eval()


IMAGES = [torch.randint(0, 256, (3, *size), generator=torch.manual_seed(1)) for size in ((64, 96), (80, 70))]


def padded_batch(mean, std):
    """Return normalised images, padded with zeros to one size, and where they are no padding."""
    pixels, mask = torch.zeros(2, 3, 80, 96, dtype=torch.float64), torch.zeros(2, 80, 96, dtype=torch.long)
    for i, image in enumerate(IMAGES):
        height, width = image.shape[-2:]
        pixels[i, :, :height, :width] = (image - mean) / std
        mask[i, :height, :width] = 1
    return {"pixel_values": pixels, "pixel_mask": mask}


def check_same_outputs(public, converted, *, tolerance):
    """Compare logits and boxes of a padded batch in float64."""
    ours = instantiate(model_config(converted.description))
    ours.load_state_dict(converted.state_dict, strict=True)
    ours, public = ours.double().eval(), public.double()
    with torch.no_grad():
        expected = public(**padded_batch(ours.pixel_mean, ours.pixel_std))
        found = ours.outputs([{"image": image} for image in IMAGES], attention_map=False).predictions
    assert (found.logits - expected.logits).abs().max() < tolerance
    assert (found.boxes - expected.pred_boxes).abs().max() < tolerance


class TestDeformableDETR:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, {"two_stage": "off", "box_refinement": False}),
            ({"num_feature_levels": 1, "dilation": True}, {"num_levels": 1}),
            ({"with_box_refine": True, "backbone": "own"}, {"two_stage": "off", "box_refinement": True}),
            ({"with_box_refine": True, "two_stage": True}, {"two_stage": "projected", "num_queries": 7}),
        ],
        ids=["one_stage", "dilated_single_scale", "refined_with_its_own_resnet", "two_stage"],
    )
    def test_a_folder_gives_the_same_outputs(self, tmp_path, options, expected):
        backbone = own_resnet(2, 3, 4) if options.get("backbone") else {}
        public = make("DeformableDetr", DEFORMABLE, **{k: v for k, v in options.items() if k != "backbone"}, **backbone)
        public.save_pretrained(tmp_path)
        converted = convert_checkpoint(load_file(tmp_path))
        assert (converted.source, converted.unknown) == ("transformers_deformable_detr", ())
        assert expected.items() <= converted.description.arguments.items()
        # the position of proposals is computed in float32 there
        check_same_outputs(public, converted, tolerance=1e-6 if options.get("two_stage") else 1e-12)


class TestFullAttention:
    """DETR and Conditional DETR, whose last class row in DETR means "no object"."""

    @pytest.mark.parametrize(
        ("model", "source", "options"),
        [
            ("Detr", "transformers_detr", {}),
            ("Detr", "transformers_detr", {"dilation": True}),
            ("ConditionalDetr", "transformers_conditional_detr", {}),
        ],
        ids=["detr", "dilated_detr", "conditional_detr"],
    )
    def test_a_folder_gives_the_same_outputs(self, tmp_path, model, source, options):
        public = make(model, SIZES, **options)
        public.save_pretrained(tmp_path)
        converted = convert_checkpoint(load_file(tmp_path))
        assert (converted.source, converted.unknown) == (source, ())
        assert converted.description.arguments["num_classes"] == 5
        assert ("dilation=True" in converted.description.backbone) == bool(options)
        # version 5 has other names in memory than in files
        in_memory = convert_checkpoint(public.state_dict()).state_dict
        assert all(torch.equal(value, converted.state_dict[name]) for name, value in in_memory.items())
        assert in_memory.keys() == converted.state_dict.keys()
        check_same_outputs(public, converted, tolerance=1e-6 if model == "ConditionalDetr" else 1e-12)


def test_every_kind_of_file_gives_the_same_weights(tmp_path):
    public = make("DeformableDetr", DEFORMABLE)
    public.save_pretrained(tmp_path / "whole")
    public.save_pretrained(tmp_path / "shards", max_shard_size="30MB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    whole = convert_checkpoint(load_file(tmp_path / "whole"))
    weights = load_file(tmp_path / "whole" / "model.safetensors")["model"]
    torch.save(weights, tmp_path / "pytorch_model.bin")  # as version 4 saves it
    torch.save(public.state_dict(), tmp_path / "in_memory.pth")  # version 5 has other names in memory than in files
    for path in ("shards", "whole/model.safetensors", "pytorch_model.bin", "in_memory.pth"):
        converted = convert_checkpoint(load_file(tmp_path / path))
        assert converted.unknown == (), path
        assert converted.state_dict.keys() == whole.state_dict.keys()
        assert all(torch.equal(value, whole.state_dict[name]) for name, value in converted.state_dict.items())


def test_a_folder_without_weights_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
    with pytest.raises(UserError, match=r"has a config\.json but none of model\.safetensors"):
        load_file(tmp_path)


def test_a_damaged_config_in_a_folder_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "detr"')
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"config\.json is damaged .*; fetch it again"):
        load_file(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        *((wrong, "is no index of weights") for wrong in (None, 3, {}, {"w": 3}, {"w": ""}, {"w": {"x": "a.bin"}})),
        ({"w": "../other.bin"}, "names a file outside its folder"),
        ({"w": "a.bin", "v": "b.bin"}, "names b.bin, which is not beside it; fetch that file as well"),
        ({"w": "a.bin", "v": "a.bin"}, "names 1 entries that its files do not hold, such as v"),
        ({"w": "list.bin"}, "names 1 entries that its files do not hold, such as w"),
    ],
)
def test_a_wrong_index_is_named(tmp_path, weight_map, words):
    torch.save({"w": torch.ones(1)}, tmp_path / "a.bin")
    torch.save([torch.ones(1)], tmp_path / "list.bin")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=words):
        load_file(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize(
    "setting",
    [
        {"activation_function": "gelu"},
        {"position_embedding_type": "learned"},
        {"model_type": "detr", "auxiliary_loss": True},
    ],
)
def test_a_setting_that_models_here_cannot_have_is_refused(setting):
    with pytest.raises(UserError, match="which makes another network; models here have"):
        training_arguments(setting)


@pytest.mark.parametrize("config", [{"dilation": True}, {"backbone_config": {"output_stride": 16}}])
def test_either_way_to_say_dilation_is_read(config):
    assert training_arguments(config)["dilation"] is True
    assert training_arguments({})["dilation"] is False
    assert training_arguments({"backbone_config": "resnet"})["dilation"] is False
