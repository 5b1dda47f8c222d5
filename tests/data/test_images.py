import numpy as np
import pytest
from PIL import Image

from sparse_detr.data.check import check_data
from sparse_detr.data.images import BadImageError, read_image
from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.errors import UserError, WorkerError
from tests.data.conftest import coco_content, write_coco


def save(folder, values, name):
    path = folder / name
    Image.fromarray(values).save(path)
    return str(path)


@pytest.mark.parametrize("brightest", [200, 255, 256, 300, 4095, 65535])
@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_a_16_bit_value_is_scaled_alike_in_bright_and_dark_images(tmp_path, brightest, name):
    values = np.full((4, 4), 200, dtype=np.uint16)
    values[0, 0] = brightest
    path = save(tmp_path, values, name)

    assert read_image(path)[2, 2].tolist() == [1, 1, 1]
    assert read_image(path, value_range=(0, 400))[2, 2].tolist() == [128, 128, 128]


def test_twelve_bits_fill_all_of_8_bits_with_their_range(tmp_path):
    path = save(tmp_path, np.array([[0, 2048], [4095, 5000]], dtype=np.uint16), "x.png")

    assert read_image(path, value_range=[0, 4095])[..., 0].tolist() == [[0, 128], [255, 255]]


def test_floats_from_0_to_1_are_black_to_white(tmp_path):
    path = save(tmp_path, np.array([[0, 0.5], [1, np.nan]], dtype=np.float32), "x.tif")

    assert read_image(path)[..., 0].tolist() == [[0, 128], [255, 0]]


@pytest.mark.parametrize("values", [np.float32([[0, 255]]), np.float32([[-1, 1]]), np.int32([[0, 1]])])
def test_values_of_unknown_range_are_refused_and_the_setting_is_named(tmp_path, values):
    path = save(tmp_path, values, "x.tif")

    with pytest.raises(BadImageError, match=r"value_range=\[LOW,HIGH\]"):
        read_image(path)
    with pytest.raises(UserError, match=r"value_range=\[LOW,HIGH\]"):
        DetrDatasetMapper(is_train=False, augmentations=[])({"file_name": path})
    assert read_image(path, value_range=(0, 255)).shape == (1, 2, 3)


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0,), "ab", 5, (0, float("nan"))])
def test_a_wrong_value_range_is_refused(value_range):
    with pytest.raises(UserError, match="values of black and white"):
        DetrDatasetMapper(is_train=False, augmentations=[], value_range=value_range)


def test_the_check_reports_the_values_in_the_files_and_recommends_a_range(tmp_path):
    content = coco_content()
    for image in content["images"]:
        save(tmp_path, np.full((30, 40), 4000, dtype=np.uint16), image["file_name"])
    path = write_coco(tmp_path, content)

    report = check_data(path, tmp_path)

    assert report.facts["highest value of 16-bit images"] == 4000
    assert "set value_range, such as [0,4095]" in str(report)
    assert check_data(path, tmp_path, value_range=(0, 4095)).findings == []


def test_an_image_above_the_limit_of_pixels_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = save(tmp_path, np.zeros((8, 8), dtype=np.uint8), "x.png")

    with pytest.raises(BadImageError, match="more than 20 pixels.*SPARSE_DETR_MAX_PIXELS"):
        read_image(path)
    monkeypatch.setenv("SPARSE_DETR_MAX_PIXELS", "64")
    assert read_image(path).shape == (8, 8, 3)
    monkeypatch.setenv("SPARSE_DETR_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="'many'"):
        read_image(path)


def test_an_error_of_a_loading_process_comes_without_its_traceback():
    error = WorkerError(
        message="Caught WorkerError in DataLoader worker process 0.\nTraceback ...\nWorkerError: x is 1\n"
    )
    assert str(error) == "x is 1"
    assert str(WorkerError(message="x is 1")) == "x is 1"
