"""Our weights in the entries of a public model: converting them again gives ours, to the last bit."""

import json

import pytest
import torch

from sparse_detr.checkpoint import convert_checkpoint, invert_conversion
from sparse_detr.checkpoint.layouts import LAYOUTS
from sparse_detr.errors import UserError
from tests.checkpoint.test_transformers import DEFORMABLE, SIZES, make, own_resnet
from tests.golden.cases import FOLDER

PUBLIC = {
    "one_stage": ("DeformableDetr", DEFORMABLE, {}),
    "refined_own_resnet": ("DeformableDetr", DEFORMABLE, {"with_box_refine": True, **own_resnet(2, 3, 4)}),
    "two_stage": ("DeformableDetr", DEFORMABLE, {"with_box_refine": True, "two_stage": True}),
    "detr": ("Detr", SIZES, {}),
    "conditional_detr": ("ConditionalDetr", SIZES, {}),
}


@pytest.fixture(scope="module", params=PUBLIC)
def public(request):
    """A state dict of `transformers`, of a model with random weights."""
    model, sizes, options = PUBLIC[request.param]
    return make(model, sizes, **options).state_dict()


def test_there_and_back_gives_every_entry_of_transformers(public):
    converted = convert_checkpoint(public)
    blank = {name: torch.zeros_like(value) for name, value in public.items()}
    found = invert_conversion(converted.state_dict, blank)
    assert found.keys() == public.keys()
    for name, value in public.items():
        expected = value if name in converted.names else torch.zeros_like(value)
        assert torch.equal(found[name], expected), name
        assert found[name].dtype == value.dtype, name


def test_other_values_of_ours_arrive_where_they_belong(public):
    """Nothing that has a place is taken from the template."""
    other = {name: 0.25 - value if value.is_floating_point() else value for name, value in public.items()}
    found = invert_conversion(convert_checkpoint(other).state_dict, public)
    assert all(torch.equal(found[name], other[name]) for name in convert_checkpoint(public).names)


@pytest.mark.parametrize("case", ["deformable_detr_r50_two_stage", "official_dab_detr_r50"])
def test_layouts_of_the_papers_are_inverted_too(case):
    rows = json.loads((FOLDER / case / "checkpoint_keys.json").read_text())
    values = {}
    for _, shape, source in rows:
        if source not in values:
            values[source] = torch.randn(shape)
    public = {name: values[source] for name, _, source in rows}
    converted = convert_checkpoint(public)
    found = invert_conversion(converted.state_dict, {name: torch.zeros_like(value) for name, value in public.items()})
    assert converted.source in LAYOUTS
    assert all(torch.equal(found[name], public[name]) for name in converted.names)


def test_what_the_public_model_cannot_hold_is_refused():
    public = make("Detr", SIZES).state_dict()
    ours = convert_checkpoint(public).state_dict
    other_head = ours | {"decoder_heads.1.class_embed.bias": ours["decoder_heads.1.class_embed.bias"] + 1}
    with pytest.raises(UserError, match=r"keeps decoder_heads\.[01]\.class_embed\.bias in a place that another"):
        invert_conversion(other_head, public)
    with pytest.raises(UserError, match=r"has no place for selector\.scorer\.weight"):
        invert_conversion(ours | {"selector.scorer.weight": torch.zeros(1)}, public)
    with pytest.raises(UserError, match=r"queries\.embedding\.weight is \[4, 64\] here and \[6, 64\] in the public"):
        invert_conversion(ours | {"queries.embedding.weight": torch.zeros(4, 64)}, public)
    lacking = {name: value for name, value in ours.items() if name != "queries.embedding.weight"}
    with pytest.raises(UserError, match=r"has queries\.embedding\.weight, which the weights here lack"):
        invert_conversion(lacking, public)
