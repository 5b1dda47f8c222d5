"""Denoising queries: groups, masks, matches and losses by hand; ranges and invariances of the noise."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import instantiate
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import box_convert

from sparse_detr.modeling.training.criterion import SetCriterion
from sparse_detr.modeling.training.denoising import ContrastiveDenoising, NoDenoising
from sparse_detr.modeling.training.matching import HungarianMatcher
from sparse_detr.recipes import dino
from sparse_detr.structures import PredictionGroup, Queries, Targets, Tokens
from tests.modeling.tiny import SIZES, make_pyramid, make_tokens, patch_backbone, picture, shake

NUM_CLASSES = 5
EMBED_DIM = 8
ONE = Targets(labels=torch.tensor([3]), boxes=torch.tensor([[0.5, 0.5, 0.2, 0.1]]))
TWO = Targets(labels=torch.tensor([0, 4]), boxes=torch.tensor([[0.3, 0.4, 0.2, 0.2], [0.7, 0.6, 0.3, 0.1]]))
NONE = Targets(labels=torch.empty(0, dtype=torch.long), boxes=torch.empty(0, 4))


def make_queries(images, number=2, *, dtype=torch.float32, **fields):
    generator = torch.Generator().manual_seed(7)
    content = torch.randn(images, number, EMBED_DIM, generator=generator, dtype=dtype)
    boxes = torch.rand(images, number, 4, generator=generator, dtype=dtype)
    return Queries(**{"content": content, "position": None, "reference_points": boxes, **fields})


def make_denoising(**options):
    torch.manual_seed(1)
    settings = {"num_queries": 100, "label_noise": 0.5, "box_noise": 1.0, "logit_eps": 1e-3, **options}
    return ContrastiveDenoising(num_classes=NUM_CLASSES, embed_dim=EMBED_DIM, **settings)


def denoise(*targets, seed=0, queries=None, **options):
    """Return the queries of a batch, after seeding the generator."""
    denoising = make_denoising(**options)
    torch.manual_seed(seed)
    return denoising(queries or make_queries(len(targets)), targets)


def many_boxes(count, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
    boxes = torch.rand(count, 4, generator=generator) * torch.tensor([0.6, 0.6, 0.3, 0.3])
    boxes = boxes + torch.tensor([0.2, 0.2, 0.05, 0.05])
    return Targets(labels=labels, boxes=boxes)


# Structure


def test_two_groups_of_an_image_with_one_box_and_one_with_two():
    queries = denoise(ONE, TWO, num_queries=5, label_noise=0.0, box_noise=0.0)
    assert queries.denoising.num_queries == 8
    assert queries.denoising.repeats == 2
    # Group 0: rows 0-1 positive, 2-3 negative; group 1: rows 4-5 positive, 6-7 negative.
    (rows_of_one, boxes_of_one), (rows_of_two, boxes_of_two) = queries.denoising.matches
    assert rows_of_one.tolist() == [0, 4]
    assert boxes_of_one.tolist() == [0, 0]
    assert rows_of_two.tolist() == [0, 1, 4, 5]
    assert boxes_of_two.tolist() == [0, 1, 0, 1]
    embed = make_denoising().label_embed.weight
    torch.testing.assert_close(queries.content[0, :8:2], embed[[3, 3, 3, 3]])
    torch.testing.assert_close(queries.content[1, :8], embed[[0, 4] * 4])
    torch.testing.assert_close(queries.reference_points[0, :8:2], ONE.boxes.repeat(4, 1))
    torch.testing.assert_close(queries.reference_points[1, :8], TWO.boxes.repeat(4, 1))


def test_a_group_attends_to_itself_and_to_matched_queries_and_only_it_attends_to_itself():
    o, x = True, False
    expected = [
        # group 0   | group 1   | matched
        [o, o, o, o, x, x, x, x, o, o],
        [o, o, o, o, x, x, x, x, o, o],
        [o, o, o, o, x, x, x, x, o, o],
        [o, o, o, o, x, x, x, x, o, o],
        [x, x, x, x, o, o, o, o, o, o],
        [x, x, x, x, o, o, o, o, o, o],
        [x, x, x, x, o, o, o, o, o, o],
        [x, x, x, x, o, o, o, o, o, o],
        [x, x, x, x, x, x, x, x, o, o],
        [x, x, x, x, x, x, x, x, o, o],
    ]
    assert denoise(ONE, TWO, num_queries=5).keep.tolist() == expected


def test_matched_queries_come_last_and_unchanged():
    before = make_queries(2)
    after = denoise(ONE, TWO, num_queries=5, queries=before)
    assert torch.equal(after.content[:, 8:], before.content)
    assert torch.equal(after.reference_points[:, 8:], before.reference_points)
    assert after.position is None


def test_unused_slots_are_ignored():
    queries = denoise(ONE, TWO, num_queries=4)
    assert queries.valid[0].tolist() == [True, False] * 4 + [True] * 2
    assert queries.valid[1].all()


def test_unused_slots_are_negatives_in_the_middle_of_the_image_as_in_the_public_code():
    queries = denoise(ONE, TWO, num_queries=4, unused="negative")
    assert queries.valid is None
    assert not queries.content[0, 1:8:2].any()
    assert (queries.reference_points[0, 1:8:2] == 0.5).all()


@pytest.mark.parametrize("unused", ["ignored", "negative"])
def test_matched_queries_that_fill_the_batch_stay_invalid(unused):
    filled = make_queries(2, valid=torch.tensor([[True, False], [True, True]]))
    queries = denoise(ONE, TWO, num_queries=4, queries=filled, unused=unused)
    assert torch.equal(queries.valid[:, 8:], filled.valid)


@pytest.mark.parametrize(("boxes", "groups"), [(1, 100), (3, 33), (40, 2), (93, 1), (100, 1)])
def test_the_number_of_queries_limits_the_number_of_groups(boxes, groups):
    denoising = denoise(many_boxes(boxes), ONE).denoising
    assert denoising.repeats == groups
    assert denoising.num_queries == 2 * groups * boxes <= 200


def test_an_image_with_too_many_boxes_denoises_a_random_choice():
    targets = many_boxes(200)
    queries = denoise(targets, TWO, label_noise=0.0, box_noise=0.0)
    denoising = queries.denoising
    assert denoising.num_queries == 200
    assert queries.content.shape[1] == 202
    rows, true = denoising.matches[0]
    assert rows.tolist() == list(range(100))
    assert true.unique().numel() == 100
    assert torch.equal(true, true.sort().values)
    torch.testing.assert_close(queries.reference_points[0, rows], targets.boxes[true])
    torch.testing.assert_close(queries.content[0, rows], make_denoising().label_embed.weight[targets.labels[true]])
    assert [x.tolist() for x in denoising.matches[1]] == [[0, 1], [0, 1]]
    assert not torch.equal(true, denoise(targets, TWO, seed=1).denoising.matches[0][1])


# Noise


def corner_shifts(queries, target):
    """Return (G, 2, n, 4): the shift of the corners of the boxes of one image, in halves of the box size."""
    boxes = queries.reference_points[0, : queries.denoising.num_queries]
    shift = box_convert(boxes, "cxcywh", "xyxy").view(-1, 2, len(target.labels), 4)
    shift = shift - box_convert(target.boxes, "cxcywh", "xyxy")
    return shift / (target.boxes[:, 2:].tile(2) / 2)


@pytest.mark.parametrize("scale", [0.49, 0.4])  # from 0.5 on, opposite corners of negatives can swap
def test_positives_move_less_than_half_their_size_and_negatives_more(scale):
    shift = corner_shifts(denoise(ONE, num_queries=4000, box_noise=scale), ONE) / scale
    positive, negative = shift.abs().unbind(1)
    assert positive.max() < 1 + 1e-5
    assert negative.min() > 1 - 1e-5
    assert negative.max() < 2 + 1e-5
    for magnitude in (positive, negative - 1):  # uniform in [0, 1): mean 1/2, deviation 12 ** -0.5
        assert magnitude.mean().item() == pytest.approx(0.5, abs=0.01)
        assert magnitude.std().item() == pytest.approx(12**-0.5, abs=0.01)
        assert magnitude.min() < 0.01
        assert magnitude.max() > 0.99
    assert shift.sign().mean((0, 2)).abs().max() < 0.06  # each corner of either kind, in both directions
    corners = shift.abs().frac().flatten(0, 2).T
    assert (torch.corrcoef(corners) - torch.eye(4)).abs().max() < 0.06


def test_noised_boxes_stay_in_the_image_and_have_a_finite_logit():
    edge = Targets(labels=torch.tensor([1, 2]), boxes=torch.tensor([[0.02, 0.98, 0.04, 0.04], [0.5, 0.5, 1.0, 1.0]]))
    boxes = denoise(edge, num_queries=1000, box_noise=2.0).reference_points[:, :2000]
    assert boxes.min() >= 0.9e-3
    assert boxes.max() <= 1 - 0.9e-3


def test_label_noise_replaces_half_its_ratio_by_any_class():
    queries = denoise(*[ONE] * 40, num_queries=500, label_noise=0.5)
    content = queries.content[:, :1000].flatten(0, 1)
    classes = torch.cdist(content, make_denoising().label_embed.weight).argmin(1)
    shares = classes.bincount(minlength=NUM_CLASSES) / 40000
    expected = torch.full((NUM_CLASSES,), 0.25 / NUM_CLASSES)
    expected[3] += 0.75
    torch.testing.assert_close(shares, expected, atol=0.005, rtol=0)


@pytest.mark.parametrize("order", [(1, 2, 3, 0), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_an_image_gets_the_same_noise_at_any_place_in_the_batch(order):
    targets = [ONE, TWO, NONE, many_boxes(120)]
    first = denoise(*targets)
    second = denoise(*(targets[i] for i in order))
    assert torch.equal(second.content[:, :200], first.content[list(order), :200])
    assert torch.equal(second.reference_points[:, :200], first.reference_points[list(order), :200])
    assert torch.equal(second.valid, first.valid[list(order)])
    for matches, image in zip(second.denoising.matches, order, strict=True):
        for a, b in zip(matches, first.denoising.matches[image], strict=True):
            assert torch.equal(a, b)


def test_an_image_without_boxes_changes_no_noise():
    alone, beside = denoise(TWO), denoise(NONE, TWO, NONE)
    assert torch.equal(alone.content[0, :200], beside.content[1, :200])
    assert torch.equal(alone.reference_points[0, :200], beside.reference_points[1, :200])


def test_the_seed_determines_the_noise():
    first, again, other = denoise(ONE, TWO), denoise(ONE, TWO), denoise(ONE, TWO, seed=1)
    assert torch.equal(first.content, again.content)
    assert torch.equal(first.reference_points, again.reference_points)
    assert not torch.equal(first.reference_points, other.reference_points)


def test_boxes_are_computed_in_single_precision_under_autocast():
    plain = denoise(ONE, TWO)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = denoise(ONE, TWO)
    assert mixed.reference_points.dtype == torch.float32
    assert torch.equal(mixed.reference_points, plain.reference_points)


def test_content_takes_the_type_of_the_queries():
    half = make_queries(1)
    queries = denoise(ONE, queries=replace(half, content=half.content.bfloat16()))
    assert queries.content.dtype == torch.bfloat16
    assert queries.reference_points.dtype == torch.float32


def test_everything_is_made_on_the_device_of_the_boxes_and_nothing_is_read_back():
    """The meta device refuses tensors of other devices, and refuses to read a value, which would make a GPU wait."""
    queries = make_queries(3)
    queries = replace(queries, content=queries.content.to("meta"), reference_points=queries.reference_points.to("meta"))
    targets = [Targets(labels=t.labels.to("meta"), boxes=t.boxes.to("meta")) for t in (ONE, NONE, many_boxes(120))]
    noised = make_denoising().to("meta")(queries, targets)
    assert noised.content.shape == (3, 202, EMBED_DIM)
    tensors = [noised.content, noised.reference_points, noised.valid, noised.keep]
    tensors += [x for pair in noised.denoising.matches for x in pair]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# Nothing to denoise


def test_no_denoising_changes_nothing():
    queries = make_queries(2)
    assert NoDenoising()(queries, [ONE, TWO]) is queries


@pytest.mark.parametrize("unused", ["ignored", "negative"])
@pytest.mark.parametrize(("number", "targets"), [(100, (NONE, NONE)), (0, (ONE, TWO))])
def test_no_boxes_or_no_budget_give_no_rows_and_the_same_graph(number, targets, unused):
    denoising = make_denoising(num_queries=number, unused=unused)
    before = make_queries(2)
    queries = denoising(before, targets)
    assert torch.equal(queries.content, before.content)
    assert torch.equal(queries.reference_points, before.reference_points)
    assert queries.denoising.num_queries == 0
    assert [[len(x) for x in pair] for pair in queries.denoising.matches] == [[0, 0], [0, 0]]
    assert queries.keep.all()
    queries.content.sum().backward()
    assert denoising.label_embed.weight.grad is not None
    assert not denoising.label_embed.weight.grad.any()


def test_one_image_without_boxes():
    queries = denoise(NONE, TWO, num_queries=4)
    assert not queries.valid[0, :8].any()
    assert [len(x) for x in queries.denoising.matches[0]] == [0, 0]
    released = denoise(NONE, TWO, num_queries=4, unused="negative")
    assert (released.reference_points[0, :8] == 0.5).all()


def test_queries_with_positions_of_their_own_are_refused():
    with pytest.raises(ValueError, match="query_position=BoxPosition"):
        denoise(ONE, queries=make_queries(1, position=torch.zeros(1, 2, EMBED_DIM)))


def test_queries_without_boxes_are_refused():
    with pytest.raises(ValueError, match="points of 2 coordinates"):
        denoise(ONE, queries=make_queries(1, reference_points=torch.zeros(1, 2, 2)))


# Losses


def focal(logit, positive):
    """Compute the sigmoid focal loss of one logit, alpha 0.25 and gamma 2."""
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def denoising_losses(targets, predict, **options):
    """Return the losses if row r of image b predicts the one logit and the box of `predict(b, r)`."""
    denoising = denoise(*targets, **options).denoising
    valid = denoise(*targets, **options).valid
    rows = [[predict(image, row) for row in range(denoising.num_queries)] for image in range(len(targets))]
    group = PredictionGroup(
        name="denoising_1",
        suffix="_dn",
        logits=torch.tensor([[logit for logit, _ in image] for image in rows])[..., None],
        boxes=torch.tensor([[box for _, box in image] for image in rows]).view(len(targets), -1, 4),
        valid=None if valid is None else valid[:, : denoising.num_queries],
        matches=denoising.matches,
        repeats=denoising.repeats,
    )
    losses = SetCriterion(matcher=HungarianMatcher(), class_weight=1.0)([group], targets)
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize(("unused", "negatives"), [("ignored", 6), ("negative", 10)])
def test_losses_of_two_images_by_hand(unused, negatives):
    one = replace(ONE, labels=torch.tensor([0]))
    two = replace(TWO, labels=torch.tensor([0, 0]))
    offset = {(0, 0): 0.0, (0, 4): 0.02, (1, 0): 0.01, (1, 1): 0.0, (1, 4): 0.0, (1, 5): 0.03}  # of cx

    def predict(image, row):
        if (image, row) not in offset:
            return -1.0, (0.9, 0.1, 0.05, 0.05)
        x, y, width, height = (one, two)[image].boxes[row % 4].tolist()
        return 2.0, (x + offset[image, row], y, width, height)

    losses = denoising_losses((one, two), predict, num_queries=4, unused=unused)
    share = 3 * 2  # boxes times groups
    expected = (6 * focal(2.0, True) + negatives * focal(-1.0, False)) / share
    assert losses["loss_class_dn"] == pytest.approx(expected, rel=1e-5)
    assert losses["loss_bbox_dn"] == pytest.approx(5 * 0.06 / share, rel=1e-4)
    # Boxes of equal size, shifted by d along their width w: IoU = (w - d) / (w + d), and the hull is their union.
    overlaps = [(w - d) / (w + d) for w, d in ((0.2, 0.02), (0.2, 0.01), (0.3, 0.03))]
    assert losses["loss_giou_dn"] == pytest.approx(2 * sum(1 - iou for iou in overlaps) / share, rel=1e-4)


def test_losses_without_boxes_are_zero():
    losses = denoising_losses((NONE, NONE), lambda image, row: (0.0, (0.5, 0.5, 0.1, 0.1)))
    assert losses == {"loss_class_dn": 0, "loss_bbox_dn": 0, "loss_giou_dn": 0}


# In a decoder


def tiny_dino(**options):
    torch.manual_seed(0)
    model = instantiate(dino(**{"backbone": patch_backbone(), **SIZES, **options})).double()
    shake(model)
    return model


@pytest.mark.parametrize("behavior", ["exact", "released"])
def test_denoising_queries_do_not_change_matched_queries(behavior):
    pictures = [picture(64, 64), picture(64, 96), picture(96, 64, boxes=())]
    model = tiny_dino(behavior=behavior, denoising_queries=8)
    noised = model.losses(pictures)
    model.denoising = NoDenoising()
    plain = model.losses(pictures)
    assert {name for name in noised if "_dn" not in name} == set(plain)
    assert min(loss.item() for name, loss in noised.items() if "_dn" in name) > 0
    torch.testing.assert_close({name: noised[name] for name in plain}, plain)


def decode(model, queries, images):
    """Return logits and boxes of the last layer, for random tokens of the first `images` images."""
    shapes = ((8, 8), (4, 4), (2, 2), (1, 1))
    tokens = make_tokens(make_pyramid(shapes, shapes, shapes), SIZES["embed_dim"])
    pyramid = make_pyramid(shapes, *[shapes] * images)
    memory = Tokens(content=tokens.content[:images], position=tokens.position[:images], pyramid=pyramid)
    last = model.decoder(queries, memory, model.decoder_heads).predictions[-1]
    return torch.cat([last.logits, last.boxes], -1)


def noised_queries(model):
    """Return two groups of two boxes, of which the first image has one, and three matched queries."""
    torch.manual_seed(3)
    content, boxes = torch.randn(2, 3, SIZES["embed_dim"]).double(), torch.rand(2, 3, 4).double()
    return model.denoising(Queries(content=content, position=None, reference_points=boxes), [ONE, TWO])


def test_a_group_does_not_change_another_group():
    model = tiny_dino(denoising_queries=4)
    queries = noised_queries(model)
    changed = queries.content.detach().clone()
    changed[:, :4] += 100
    before, after = decode(model, queries, 2), decode(model, replace(queries, content=changed), 2)
    torch.testing.assert_close(before[:, 4:], after[:, 4:])
    assert not torch.isclose(before[1, :4], after[1, :4]).any()


def test_an_image_decodes_beside_a_fuller_one_as_it_does_alone():
    model = tiny_dino(denoising_queries=4)
    queries = noised_queries(model)
    valid = queries.valid[0]
    assert valid.tolist() == [True, False] * 4 + [True] * 3
    alone = replace(
        queries,
        content=queries.content[:1, valid],
        reference_points=queries.reference_points[:1, valid],
        valid=None,
        keep=queries.keep[valid][:, valid],
    )
    torch.testing.assert_close(decode(model, alone, 1)[0], decode(model, queries, 2)[0, valid])


# Several processes


class ToyDetector(nn.Module):
    """One layer over all queries, with denoising queries in front."""

    def __init__(self):
        super().__init__()
        self.denoising = make_denoising(num_queries=4)
        self.layer = nn.Linear(EMBED_DIM, NUM_CLASSES)

    def forward(self, targets):
        queries = self.denoising(make_queries(len(targets)), targets)
        return self.layer(queries.content).square().sum()


def toy_gradients(model, targets):
    torch.manual_seed(2)
    for _ in range(2):  # an unused parameter shows in the second step
        model.zero_grad()
        model(targets).backward()
    return [parameter.grad for parameter in model.parameters()]


def dino_gradients(model, boxes):
    """Return the names of the losses, and the gradients, of one picture."""
    for _ in range(2):
        model.zero_grad()
        losses = model([picture(64, 64, boxes)])
        sum(losses.values()).backward()
    return {"losses": sorted(losses), "gradients": [parameter.grad for parameter in model.parameters()]}


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    toy = toy_gradients(DistributedDataParallel(ToyDetector()), [(ONE, TWO), (NONE, NONE)][rank])
    detector = DistributedDataParallel(tiny_dino().train())
    whole = dino_gradients(detector, [((0.1, 0.2, 0.5, 0.7),), ()][rank])
    torch.save({"toy": toy, "dino": whole}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Run two processes, of which the second has no boxes; return what each computed."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(run_rank, args=(folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_without_boxes_averages_gradients_with_one_that_has_some(ranks):
    first, second = (rank["toy"] for rank in ranks)
    with_boxes, without = (toy_gradients(ToyDetector(), targets) for targets in ((ONE, TWO), (NONE, NONE)))
    for gradient, other, a, b in zip(first, second, with_boxes, without, strict=True):
        assert torch.equal(gradient, other)
        torch.testing.assert_close(gradient, (a + b) / 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_without_boxes_has_the_losses_and_the_graph_of_one_that_has_some(ranks):
    first, second = (rank["dino"] for rank in ranks)
    assert first["losses"] == second["losses"]
    assert "loss_giou_dn_0" in first["losses"]
    for gradient, other in zip(first["gradients"], second["gradients"], strict=True):
        assert gradient.isfinite().all()
        assert torch.equal(gradient, other)
