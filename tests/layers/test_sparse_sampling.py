"""Sparse features: against plain bilinear samples, at points solved by hand, with and without padding."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sparse_detr.layers import FeatureSampler
from sparse_detr.structures import FeatureMaps
from tests.modeling.tiny import make_pyramid

C, P, SHAPES = 16, 3, ((6, 8), (3, 4))
VALID = (SHAPES, ((4, 5), (2, 3)))


def make_maps(*valid, seed=0):
    pyramid = make_pyramid(SHAPES, *valid)
    content = torch.randn(pyramid.batch_size, pyramid.num_tokens, C, generator=torch.Generator().manual_seed(seed))
    return FeatureMaps(content.double(), pyramid)


def make_sampler(**options):
    torch.manual_seed(0)
    sampler = FeatureSampler(embed_dim=C, num_levels=2, num_points=P, mixing_dim=4, **options).double()
    for parameter in sampler.parameters():
        torch.nn.init.normal_(parameter)
    return sampler


def queries_and_boxes(batch_size):
    torch.manual_seed(1)
    query = torch.randn(batch_size, 4, C).double() / C**0.5
    return query, torch.rand(batch_size, 4, 4).double()


def plain(sampler, query, boxes, maps):
    """Return the content and the points by the formulas, with PyTorch's own bilinear samples, query by query."""
    contents, places = [], []
    ratios = maps.pyramid.valid_ratios(torch.float64)
    levels = [
        level.transpose(1, 2).unflatten(2, shape)
        for level, shape in zip(maps.pyramid.split(maps.content), SHAPES, strict=True)
    ]
    for image in range(len(query)):
        for x, (cx, cy, w, h) in zip(query[image], boxes[image].tolist(), strict=True):
            reduce, expand = sampler.mixing.weights(x).chunk(2)
            for numbers in sampler.sampling(x).view(P, 4):
                point = torch.stack([cx + w * numbers[0].tanh(), cy + h * numbers[1].tanh()])
                feature = torch.zeros(C, dtype=torch.float64)
                for level, share in enumerate(numbers[2:].softmax(0)):
                    place = (2 * point * ratios[image, level] - 1).view(1, 1, 1, 2)
                    sample = F.grid_sample(levels[level][image : image + 1], place, align_corners=False).flatten()
                    feature = feature + share * (sample + sampler.level_embed[level])
                hidden = sampler.mixing.hidden_norm(feature @ reduce.view(C, 4)).relu()
                contents.append(sampler.mixing.norm(hidden @ expand.view(4, C)))
                places.append(point)
    return torch.stack(contents).view(len(query), -1, C), torch.stack(places).view(len(query), -1, 2)


@pytest.mark.parametrize("valid", [(SHAPES,), VALID], ids=["one image", "padded"])
def test_features_are_mixed_bilinear_samples_of_all_maps(valid):
    sampler, maps = make_sampler(map_padding="visible"), make_maps(*valid)
    query, boxes = queries_and_boxes(len(valid))
    found = sampler(query, boxes, maps)
    content, points = plain(sampler, query, boxes, maps)
    assert_close(found.points, points)
    assert_close(found.content, content)


def test_padding_reads_as_zero_unless_it_is_visible():
    query, boxes = queries_and_boxes(2)
    maps, others = (make_maps(*VALID, seed=seed) for seed in (0, 1))
    padding = maps.pyramid.padding_mask[..., None]
    noisy = FeatureMaps(torch.where(padding, others.content, maps.content), maps.pyramid)
    hidden, visible = make_sampler(), make_sampler(map_padding="visible")
    assert torch.equal(hidden(query, boxes, noisy).content, hidden(query, boxes, maps).content)
    assert not torch.equal(visible(query, boxes, noisy).content[1], visible(query, boxes, maps).content[1])
    zero = FeatureMaps(maps.content.masked_fill(padding, 0), maps.pyramid)
    assert_close(hidden(query, boxes, maps).content, visible(query, boxes, zero).content)


def test_points_lie_at_most_one_box_size_away():
    """tanh(100) is 1 in float64: a corner point of a box at (0.5, 0.4) of size (0.2, 0.1) is at (0.7, 0.3)."""
    sampler, maps = make_sampler(), make_maps()
    sampler.reset_parameters()
    with torch.no_grad():
        sampler.sampling.linears[-1].bias.view(P, 4)[1, :2] = torch.tensor([100.0, -100.0])
    box = torch.tensor([[[0.5, 0.4, 0.2, 0.1]]]).double()
    found = sampler(torch.randn(1, 1, C).double(), box, maps)
    assert_close(found.points[0], torch.tensor([[0.5, 0.4], [0.7, 0.3], [0.5, 0.4]]).double())
    row = torch.tensor([math.sin(2 * math.pi * 0.3), math.cos(2 * math.pi * 0.3)]).double()
    assert_close(found.position[0, 1, :2], row)  # the row comes first; the first frequency is 1


def test_at_the_start_every_point_is_the_centre_and_all_maps_count_alike():
    sampler, maps = make_sampler(), make_maps()
    sampler.reset_parameters()
    query, boxes = queries_and_boxes(1)
    found = sampler(query, boxes, maps)
    assert torch.equal(found.points, boxes[..., :2].repeat_interleave(P, 1))
    content = found.content.unflatten(1, (4, P))
    assert_close(content, content[:, :, :1].expand_as(content))


def test_the_loss_reaches_every_parameter_and_the_maps():
    sampler, maps = make_sampler(), make_maps(*VALID)
    maps.content.requires_grad_()
    found = sampler(*queries_and_boxes(2), maps)
    (found.content.square().sum() + found.position.sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in sampler.parameters())
    assert maps.content.grad.abs().sum() > 0
    assert not maps.content.grad[maps.pyramid.padding_mask].any()
