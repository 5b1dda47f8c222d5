"""The model that the converter found, as a config."""

import pytest

from sparse_detr.checkpoint.describe import Description
from sparse_detr.config import model_config
from sparse_detr.errors import UserError
from tests.modeling.tiny import patch_backbone


def test_a_description_becomes_the_config_of_its_recipe():
    description = Description(
        "deformable_detr", "resnet(101, dilation=True)", {"num_queries": 7}, {"criterion.class_weight": 3.5}
    )
    config = model_config(description)
    assert (config.queries.num_queries, config.criterion.class_weight) == (7, 3.5)
    assert config.backbone.stages.depth == 101
    assert config.tokenizer.padding == "released"
    assert model_config(description, behavior="exact", num_queries=9).tokenizer.padding == "exact"
    assert description.call == (
        "deformable_detr(backbone=resnet(101, dilation=True), behavior='released', num_queries=7)"
    )


def test_an_unknown_backbone_must_be_given():
    description = Description("deformable_detr", None)
    with pytest.raises(UserError, match=r"give one: model_config\(description, backbone=\.\.\.\)"):
        model_config(description)
    assert "PatchBackbone" in str(model_config(description, backbone=patch_backbone()).backbone)


def test_weights_of_a_backbone_are_no_model():
    with pytest.raises(UserError, match="weights of a backbone, not of a detector"):
        model_config(Description(None, "resnet(50)"))
