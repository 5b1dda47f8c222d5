"""A student refines the tokens that its teacher's decoder attends to most."""

import pytest
import torch

from sparse_detr.modeling.selection import EvenBudget, TopKSelector
from sparse_detr.studies.taught import TaughtDETR, TeacherScorer, frozen_teacher
from tests.modeling.tiny import build, picture

BATCH = [picture(96, 64), picture(70, 125)]


@pytest.fixture
def student():
    """Return a student of another seed than its teacher."""
    dense = build("topk", seed=1)
    parts = {name: getattr(dense, name) for name in ("backbone", "tokenizer", "proposals", "projection", "encoder")}
    parts |= {name: getattr(dense, name) for name in ("queries", "denoising", "decoder", "attention_map")}
    parts |= {name: getattr(dense, name) for name in ("auxiliary_proposals", "supervision", "criterion", "postprocess")}
    from sparse_detr.modeling.heads import Heads

    model = TaughtDETR(
        teacher=build("topk", seed=0),
        heads=Heads(list(dense.decoder_heads), dense.proposal_head, []),
        in_features=dense.in_features,
        num_classes=dense.num_classes,
        selector=TopKSelector(scorer=TeacherScorer(), budget=EvenBudget(keep_ratio=0.3)),
        **parts,
    )
    return model.double()


def test_it_keeps_the_tokens_with_most_of_the_teachers_attention(student):
    student.eval()
    with torch.no_grad():
        output, wanted = student.outputs(BATCH), student.teacher.eval().outputs(BATCH).attention_map
    for image, keep in enumerate(output.selection.keep):
        valid = ~output.pyramid.padding_mask[image]
        best = wanted[image].masked_fill(~valid, -1).topk(int(keep.sum())).indices
        assert keep[best].all()
        assert int(keep.sum()) == int(int(valid.sum()) * 0.3) + 1


def test_the_teacher_stays_frozen_and_in_eval_mode(student):
    student.train()
    assert not any(module.training for module in student.teacher.modules())
    sum(student(BATCH).values()).backward()
    assert all(weight.grad is None for weight in student.teacher.parameters())
    assert any(weight.grad is not None and weight.grad.any() for weight in student.encoder.parameters())


def test_a_teacher_with_other_levels_is_named(student):
    student.teacher = build("topk", num_levels=5).eval()
    with pytest.raises(ValueError, match="the teacher has levels"):
        student.eval()(BATCH)


def test_the_teacher_is_loaded_from_its_checkpoint_or_left_for_the_students(tmp_path):
    trained = build("topk", seed=3)
    torch.save({"model": trained.state_dict()}, tmp_path / "teacher.pth")
    fresh = build("topk", seed=4)
    before = next(fresh.encoder.parameters()).clone()
    assert torch.equal(next(frozen_teacher(model=fresh, weights="gone.pth").encoder.parameters()), before)
    loaded = frozen_teacher(model=fresh, weights=str(tmp_path / "teacher.pth"))
    assert torch.equal(next(loaded.encoder.parameters()), next(trained.encoder.parameters()))
