import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.errors import UserError
from tests.data.conftest import make_record


def make_mapper(*augmentations, is_train=True, **options):
    return DetrDatasetMapper(is_train=is_train, augmentations=list(augmentations), **options)


def test_boxes_follow_a_flip_and_a_resize(tmp_path):
    record = make_record(tmp_path, 1, width=40, height=30, boxes=[(4.0, 6.0, 10.0, 12.0)])

    sample = make_mapper(T.HFlipTransform(40), T.Resize((60, 80)))(record)

    assert sample["image"].shape == (3, 60, 80)
    assert sample["image"].dtype == torch.uint8
    assert (sample["height"], sample["width"]) == (30, 40)
    assert sample["instances"].image_size == (60, 80)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[52.0, 12.0, 72.0, 36.0]]
    assert sample["instances"].gt_classes.tolist() == [0]


def test_boxes_are_clipped_and_those_without_area_in_the_image_are_dropped(tmp_path):
    boxes = [
        (-5.0, -5.0, 10.0, 10.0),  # partly outside
        (50.0, 1.0, 5.0, 5.0),  # outside
        (1.0, 1.0, 0.0, 5.0),  # no width
        (1.0, 1.0, 5.0, -2.0),  # negative height
        (float("nan"), 1.0, 5.0, 5.0),
        (30.0, 20.0, 10.0, 10.0),  # up to the corner
    ]
    record = make_record(tmp_path, 1, width=40, height=30, boxes=boxes)

    sample = make_mapper()(record)

    assert sample["instances"].gt_boxes.tensor.tolist() == [[0.0, 0.0, 5.0, 5.0], [30.0, 20.0, 40.0, 30.0]]


def test_a_crop_drops_the_boxes_it_leaves_outside(tmp_path):
    record = make_record(tmp_path, 1, width=40, height=30, boxes=[(0.0, 0.0, 10.0, 10.0), (15.0, 15.0, 10.0, 10.0)])

    sample = make_mapper(T.CropTransform(10, 10, 10, 10))(record)

    assert sample["instances"].gt_boxes.tensor.tolist() == [[5.0, 5.0, 10.0, 10.0]]


def test_crowd_boxes_are_left_out(tmp_path):
    record = make_record(tmp_path, 1, boxes=[(0.0, 0.0, 9.0, 9.0), (5.0, 5.0, 9.0, 9.0)])
    record["annotations"][0]["iscrowd"] = 1

    assert make_mapper()(record)["instances"].gt_boxes.tensor.tolist() == [[5.0, 5.0, 14.0, 14.0]]


def test_an_image_without_boxes_stays_as_a_negative(tmp_path):
    sample = make_mapper(T.HFlipTransform(40))(make_record(tmp_path, 1, boxes=[]))

    assert len(sample["instances"]) == 0
    assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
    assert sample["instances"].gt_classes.dtype == torch.int64


def test_the_input_record_is_not_changed(tmp_path):
    record = make_record(tmp_path, 1, boxes=[(-5.0, 2.0, 10.0, 10.0)])
    before = copy.deepcopy(record)

    make_mapper(T.HFlipTransform(40))(record)

    assert record == before


def test_inference_has_no_instances_and_takes_a_record_without_a_size(tmp_path):
    record = make_record(tmp_path, 1, width=40, height=30)
    del record["width"], record["height"]

    sample = make_mapper(T.Resize((15, 20)), is_train=False)(record)

    assert set(sample) == {"file_name", "image_id", "image", "height", "width"}
    assert (sample["height"], sample["width"]) == (30, 40)


def test_bgr_is_rgb_with_the_channels_reversed(tmp_path):
    record = make_record(tmp_path, 1)

    rgb = make_mapper(image_format="RGB")(record)["image"]
    bgr = make_mapper(image_format="BGR")(record)["image"]

    assert torch.equal(rgb.flip(0), bgr)


def save_image(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return {"file_name": str(path), "image_id": 0, "annotations": []}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    name = "image.tif" if mode == "CMYK" else "image.png"
    record = save_image(tmp_path, Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode), name)

    sample = make_mapper()(record)

    assert sample["image"].shape == (3, 4, 6)
    assert sample["image"].min() == 255


def test_16_bit_images_are_scaled_not_cut_off(tmp_path):
    pixels = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    record = save_image(tmp_path, Image.fromarray(pixels))

    assert make_mapper()(record)["image"][0].tolist() == [[0, 100], [200, 255]]


def test_an_image_of_one_pixel_works(tmp_path):
    record = save_image(tmp_path, Image.new("RGB", (1, 1)))

    assert make_mapper(T.ResizeShortestEdge([8], 8, "choice"))(record)["image"].shape == (3, 8, 8)
    assert make_mapper()(record)["image"].shape == (3, 1, 1)


def test_the_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    record = save_image(tmp_path, Image.new("RGB", (6, 4)), "image.jpg", exif=exif)

    assert make_mapper()(record | {"width": 4, "height": 6})["image"].shape == (3, 6, 4)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbled(path):
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(bytes(content))


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", [truncated, emptied, removed])
def test_an_unusable_image_gives_none_and_one_line_in_the_log(tmp_path, suffix, damage, caplog):
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    record = save_image(tmp_path, Image.fromarray(pixels), f"image.{suffix}")
    damage(Path(record["file_name"]))
    mapper = make_mapper()

    assert [mapper(record), mapper(record)] == [None, None]
    assert caplog.text.count("skipped an image") == 1
    assert record["file_name"] in caplog.text


def test_a_garbled_png_gives_none(tmp_path):
    record = save_image(tmp_path, Image.new("RGB", (64, 64)))
    garbled(Path(record["file_name"]))

    assert make_mapper()(record) is None


def test_an_image_of_another_size_than_recorded_gives_none_and_says_so(tmp_path, caplog):
    record = make_record(tmp_path, 1, width=40, height=30) | {"width": 30, "height": 40}

    assert make_mapper()(record) is None
    assert "is 40x30 (width x height, sides swapped: EXIF orientation?)" in caplog.text
    assert "record 30x40" in caplog.text


def test_a_yacs_config_builds_the_mapper(tmp_path):
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (16,)
    cfg.INPUT.MAX_SIZE_TRAIN = 32
    cfg.INPUT.MIN_SIZE_TEST = 24
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute_range"
    cfg.INPUT.CROP.SIZE = [10, 20]
    record = make_record(tmp_path, 1)

    trained = DetrDatasetMapper(cfg, is_train=True)(record)
    tested = DetrDatasetMapper(cfg, is_train=False)(record)

    assert min(trained["image"].shape[1:]) == 16
    assert "instances" in trained
    assert tested["image"].shape == (3, 24, 32)


def test_a_crop_that_is_not_detrs_is_refused():
    cfg = get_cfg()
    cfg.INPUT.CROP.ENABLED = True

    with pytest.raises(UserError, match=r"INPUT.CROP.TYPE is 'relative_range'"):
        DetrDatasetMapper(cfg, is_train=True)


def test_a_wrong_image_format_is_refused():
    with pytest.raises(UserError, match="'GRAY'"):
        make_mapper(image_format="GRAY")


def test_boxes_in_both_of_detectron2s_formats_are_read(tmp_path):
    record = make_record(tmp_path, 1, boxes=[(1.0, 2.0, 3.0, 4.0)] * 2)
    record["annotations"][1] |= {"bbox": [1.0, 2.0, 4.0, 6.0], "bbox_mode": BoxMode.XYXY_ABS}

    assert make_mapper()(record)["instances"].gt_boxes.tensor.tolist() == [[1.0, 2.0, 4.0, 6.0]] * 2


def smooth_picture(width, height):
    """Return an image of slow colour gradients, which every decoder and resize keeps nearly the same."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (255 * np.stack([x, y, 1 - x], -1)).astype(np.uint8)


def jpeg_record(folder, width, height, *, orientation=None):
    path = folder / "photo.jpg"
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(smooth_picture(width, height)).save(path, quality=95, exif=exif)
    size = (height, width) if orientation in (6, 8) else (width, height)
    record = make_record(folder, 1, width=size[0], height=size[1], boxes=[(8.0, 12.0, 20.0, 30.0)])
    return {**record, "file_name": str(path)}


@pytest.mark.parametrize("orientation", [None, 6])
def test_a_draft_has_nearly_the_pixels_and_boxes_of_the_whole_image(tmp_path, orientation):
    record = jpeg_record(tmp_path, 161, 123, orientation=orientation)  # sides that 4 does not divide
    resize = T.Resize((24, 32))
    drafted = make_mapper(resize, draft_short_side=30)(record)
    whole = make_mapper(resize)(record)
    assert (drafted["height"], drafted["width"]) == (whole["height"], whole["width"])
    torch.testing.assert_close(
        drafted["instances"].gt_boxes.tensor, whole["instances"].gt_boxes.tensor, atol=0.5, rtol=0
    )
    difference = (drafted["image"].float() - whole["image"].float()).abs()
    assert 0 < difference.mean() < 3


@pytest.mark.parametrize(("short_side", "shape"), [(15, (16, 21)), (16, (31, 41)), (31, (62, 81)), (62, (123, 161))])
def test_a_draft_keeps_the_short_side_and_the_whole_image_stays_below_twice_of_it(tmp_path, short_side, shape):
    record = jpeg_record(tmp_path, 161, 123)
    sample = make_mapper(draft_short_side=short_side)(record)
    assert sample["image"].shape[1:] == shape
    if shape == (123, 161):
        assert torch.equal(sample["image"], make_mapper()(record)["image"])


def test_other_files_than_jpeg_are_not_drafted(tmp_path):
    record = make_record(tmp_path, 1, width=40, height=30, boxes=[(4.0, 6.0, 10.0, 12.0)])
    assert make_mapper(draft_short_side=2)(record)["image"].shape == (3, 30, 40)


def test_a_draft_of_another_size_than_recorded_is_skipped(tmp_path, caplog):
    record = {**jpeg_record(tmp_path, 160, 120), "width": 159}
    assert make_mapper(draft_short_side=20)(record) is None
    assert "is 160x120" in caplog.text
