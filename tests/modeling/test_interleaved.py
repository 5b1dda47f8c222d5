"""Encoder layers between decoder layers: the loop by hand, the choice of queries, the sparse tokens."""

from dataclasses import replace

import pytest
import torch
from detectron2.config import instantiate
from torch import nn
from torch.testing import assert_close

from sparse_detr.analysis.tokens import watch_sampled_points
from sparse_detr.layers import SparseFeatures, embed_tokens
from sparse_detr.modeling.encoder import InterleavedEncoder
from sparse_detr.modeling.heads import PredictionHead
from sparse_detr.modeling.tokenizers import CoarsestMapTokenizer
from sparse_detr.recipes import imfa_dab_detr
from sparse_detr.structures import Denoising, Queries
from tests.modeling.tiny import SIZES, build, make_pyramid, make_tokens, patch_backbone, picture, tiny_imfa

C = 4


class Doubling(nn.Module):
    """An encoder layer that doubles the content and notes what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, rows, mask):
        self.seen.append((rows, mask))
        return 2 * rows.content


class Constant(nn.Module):
    """A sampler whose tokens are all 100, one at every box centre."""

    def forward(self, query, boxes, maps):
        content = query.new_full(query.shape, 100.0)
        return SparseFeatures(content, torch.full_like(content, 0.5), boxes[..., :2])


def make_encoder(layers=4, count=2):
    encoder = InterleavedEncoder(
        layers=[Doubling() for _ in range(layers)], sampler=Constant(), num_sampling_queries=count, embed_dim=C
    )
    return encoder.double()


def make_queries(content, **fields):
    return Queries(content=content, position=None, reference_points=content.new_zeros(*content.shape[:2], 4), **fields)


def head_of_first_channel():
    """Return a head with one class, whose logit is the first channel of the content."""
    head = PredictionHead(embed_dim=C, num_classes=1).double()
    with torch.no_grad():
        head.class_embed.weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
    return head


def run(encoder, tokens):
    """Return the memory of every decoder layer."""
    content = torch.randn(tokens.pyramid.batch_size, 5, C).double()
    reference, head, memory, memories = content.sigmoid(), head_of_first_channel(), tokens, []
    for i in range(len(encoder.layers)):
        memory = encoder(memory, make_queries(content), reference, content, head if i else None, layer=i)
        memories.append(memory)
    return memories


def test_from_the_third_layer_on_the_output_of_the_first_is_added():
    """A token 1 becomes 2, 4, 2 (4 + 2) = 12, 2 (12 + 2) = 28; a sparse token 100 becomes 200 every time."""
    tokens = make_tokens(make_pyramid(((1, 1),)), C)
    memories = run(make_encoder(), replace(tokens, content=torch.ones_like(tokens.content)))
    assert [memory.content[0, :, 0].tolist() for memory in memories] == [
        [2],
        [4, 200, 200],
        [12, 200, 200],
        [28, 200, 200],
    ]


def test_only_encoder_layers_see_scaled_positions():
    tokens, encoder = make_tokens(make_pyramid(((2, 3),)), C), make_encoder()
    for layer, memory in zip(encoder.layers, run(encoder, tokens), strict=True):
        rows, _ = layer.seen[0]
        assert_close(rows.position, memory.position * encoder.position_scale(rows.content))
        assert torch.equal(memory.position[:, :6], tokens.position)
        assert (memory.position[:, 6:] == 0.5).all()


def test_sparse_tokens_are_never_masked_and_padding_always_is():
    pyramid = make_pyramid(((2, 3),), ((2, 3),), ((1, 2),))
    encoder = make_encoder()
    memories = run(encoder, make_tokens(pyramid, C))
    for layer, memory in zip(encoder.layers, memories, strict=True):
        sparse = memory.content.shape[1] - 6
        assert memory.padding_mask[:, :6].equal(pyramid.padding_mask)
        assert not memory.padding_mask[:, 6:].any()
        assert layer.seen[0][1].sum((1, 2, 3)).tolist() == [6 + sparse, 2 + sparse]
    assert [memory.content.shape[1] for memory in memories] == [6, 8, 8, 8]


def test_the_queries_with_the_best_classes_are_chosen_but_no_denoising_query():
    content = torch.zeros(1, 5, C).double()
    content[0, :, 0] = torch.tensor([9.0, 1.0, 3.0, 2.0, -1.0])
    boxes = torch.arange(5.0).double()[None, :, None].expand(1, 5, 4)
    encoder, head = make_encoder(), head_of_first_channel()
    chosen, at = encoder.choose(make_queries(content), boxes, content, head)
    assert (chosen[0, :, 0].tolist(), at[0, :, 0].tolist()) == ([9, 3], [0, 2])
    denoised = make_queries(content, denoising=Denoising(num_queries=1, matches=(), repeats=1))
    chosen, at = encoder.choose(denoised, boxes, content, head)
    assert (chosen[0, :, 0].tolist(), at[0, :, 0].tolist()) == ([3, 2], [2, 3])


def test_the_coarsest_map_becomes_tokens_and_all_maps_stay():
    torch.manual_seed(0)
    tokenizer = CoarsestMapTokenizer(in_channels=(3, 5), strides=(8, 16), embed_dim=8, position_offset=-0.5).double()
    maps = [torch.randn(2, 3, 4, 6).double(), torch.randn(2, 5, 2, 3).double()]
    tokens = tokenizer(maps, [(32, 48), (20, 17)], (32, 48))
    assert tokens.pyramid.spatial_shapes == ((2, 3),)
    assert tokens.maps.pyramid.spatial_shapes == ((4, 6), (2, 3))
    assert tokens.maps.pyramid.valid_sizes[1].tolist() == [[3, 3], [2, 2]]
    assert torch.equal(tokens.maps.content[:, 24:], tokens.content)
    assert_close(tokens.maps.content[0, 7], tokenizer.fine_projections[0](maps[0])[0, :, 1, 1])  # row 1, column 1 of 6
    valid = ~tokens.padding_mask
    expected = embed_tokens(tokens.pyramid, 8, dtype=torch.float64, temperature=20)
    assert_close(tokens.position[valid], expected[valid])


def test_a_new_model_samples_at_the_centres_of_boxes():
    sampler = instantiate(tiny_imfa(backbone=patch_backbone(), **SIZES)).decoder.encoder.sampler
    last = sampler.sampling.linears[-1]
    assert not last.weight.any()
    assert not last.bias.any()
    assert sampler.sampling.linears[0].weight.any()


def test_a_fifth_of_the_queries_sample():
    assert imfa_dab_detr().decoder.encoder.num_sampling_queries == 60
    assert imfa_dab_detr(num_queries=50).decoder.encoder.num_sampling_queries == 10
    with pytest.raises(ValueError, match="num_sampling_queries must be at least 1, got 0"):
        build("imfa", sampling_share=0.05)


def test_a_single_layer_which_reads_no_sparse_tokens_is_refused():
    with pytest.raises(ValueError, match="decoder_layers must be at least 2, got 1; for one layer choose"):
        build("imfa", encoder_layers=1)


@pytest.mark.parametrize("num_maps", [1, 2])
def test_any_number_of_maps_will_do(num_maps):
    backbone = patch_backbone()
    backbone.config.num_maps = num_maps
    few = backbone._replace(**{name: getattr(backbone, name)[-num_maps:] for name in backbone._fields[1:4]})
    model = build("imfa", backbone=few)
    losses = model.train()([picture(64, 96)])
    assert sum(losses.values()).isfinite()


def test_the_sampled_points_of_every_later_layer_can_be_watched():
    model = build("imfa", sampling_share=0.5)
    with watch_sampled_points(model.decoder.encoder) as points:
        model.outputs([picture(64, 96), picture(64, 64)])
    assert {layer: found.shape for layer, found in points.items()} == {
        1: (2, 12, 2),
        2: (2, 12, 2),
    }  # 6 queries, 2 each
    model = build("dab")
    with watch_sampled_points(model.decoder.encoder) as points:
        model.outputs([picture(64, 96)])
    assert points == {}


@pytest.mark.parametrize("behavior", ["exact", "released"])
def test_an_image_alone_has_the_same_best_queries_points_and_predictions_as_in_a_batch(behavior):
    """A small image at the border of whose maps lies padding, full of noise; `released` reads it."""
    model, pictures = build("imfa", behavior=behavior), [picture(40, 50), picture(96, 64)]
    model.backbone.image_sizes = [(40, 50), (96, 64)]
    with watch_sampled_points(model.decoder.encoder) as points:
        batched = model.outputs(pictures).groups
    model.backbone.image_sizes = None
    with watch_sampled_points(model.decoder.encoder) as points_alone:
        alone = model.outputs(pictures[:1]).groups
    differences = [(a.logits[0] - b.logits[0]).abs().max() for a, b in zip(batched, alone, strict=True)]
    differences += [(points[i][0] - points_alone[i][0]).abs().max() for i in points]
    assert (max(differences) < 1e-9) == (behavior == "exact")


def test_later_layers_read_finer_maps():
    """The predictions of the first layer come before any sample, so they know the coarsest map only."""
    model, batch = build("imfa"), [picture(64, 96)]
    before = model.outputs(batch).groups
    with torch.no_grad():
        model.tokenizer.fine_projections[0].weight.add_(1)
    after = model.outputs(batch).groups
    assert torch.equal(before[0].logits, after[0].logits)
    assert all((a.logits - b.logits).abs().max() > 1e-6 for a, b in zip(before[1:], after[1:], strict=True))
