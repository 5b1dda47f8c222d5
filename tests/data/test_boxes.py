import numpy as np

from sparse_detr.data.boxes import clip_boxes, find_box_faults

BOXES = np.array(
    [
        [0, 0, 10, 20],  # the whole image
        [-0.5, 0, 10.5, 20],  # a rounding error outside
        [-3, 0, 5, 5],
        [5, 5, 5, 8],
        [8, 8, 5, 12],
        [np.nan, 0, 1, 1],
        [0, 0, np.inf, 1],
        [10, 0, 12, 5],
        [0, -5, 5, 0],
    ]
)


def test_every_fault_of_a_box_is_distinguished():
    faults = find_box_faults(BOXES, height=20, width=10)

    assert faults.degenerate.nonzero()[0].tolist() == [3, 4, 5, 6]
    assert faults.outside.nonzero()[0].tolist() == [7, 8]
    assert faults.clipped.nonzero()[0].tolist() == [2]
    assert faults.usable.nonzero()[0].tolist() == [0, 1, 2]


def test_boxes_of_several_images_are_checked_against_their_own_image_size():
    faults = find_box_faults([[4, 4, 8, 8]] * 2, height=np.array([10, 3]), width=np.array([10, 10]))

    assert faults.outside.tolist() == [False, True]


def test_an_empty_list_of_boxes_has_no_faults():
    assert find_box_faults(np.zeros((0, 4)), 5, 5).usable.shape == (0,)


def test_clipping_keeps_the_part_inside_the_image():
    assert clip_boxes(np.array([[-3.0, 2.0, 30.0, 40.0]]), height=20, width=10).tolist() == [[0, 2, 10, 20]]
