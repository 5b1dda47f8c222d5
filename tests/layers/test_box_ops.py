"""Generalized IoU, by hand and against torchvision."""

import torch
from torch.testing import assert_close
from torchvision.ops import box_convert, generalized_box_iou_loss

from sparse_detr.layers import generalized_iou


def test_the_generalized_iou_of_two_hand_made_boxes_is_a_half():
    box, other = torch.tensor([0.5, 0.5, 0.2, 0.2]), torch.tensor([0.6, 0.5, 0.4, 0.2])
    assert_close(generalized_iou(box, other, 0.0), torch.tensor(0.5))


def test_boxes_apart_have_the_negative_share_of_the_gap_in_the_outer_box():
    box, other = torch.tensor([0.1, 0.5, 0.2, 0.2]), torch.tensor([0.9, 0.5, 0.2, 0.2])
    assert_close(generalized_iou(box, other, 0.0), torch.tensor(-0.6))  # of the outer box's width of 1, 0.6 is a gap


def test_all_pairs_equal_torchvisions_loss_of_pairs_and_its_gradient():
    torch.manual_seed(0)
    boxes = (torch.rand(7, 4, dtype=torch.float64) * 0.4 + 0.05).requires_grad_()
    others = torch.rand(5, 4, dtype=torch.float64) * 0.4 + 0.05
    found = generalized_iou(boxes[:, None], others, 1e-6)
    left, right = torch.broadcast_tensors(boxes[:, None], others)
    corners = box_convert(left, "cxcywh", "xyxy"), box_convert(right, "cxcywh", "xyxy")
    expected = 1 - generalized_box_iou_loss(*corners, eps=1e-6)
    assert_close(found, expected)
    weights = torch.rand_like(found)
    gradients = [torch.autograd.grad((x * weights).sum(), boxes)[0] for x in (found, expected)]
    assert_close(*gradients)


def test_a_box_without_area_has_a_finite_gradient():
    box = torch.tensor([0.5, 0.5, 0.0, 0.0], requires_grad=True)
    generalized_iou(box, box.detach(), 1e-12).backward()
    assert box.grad.isfinite().all()
