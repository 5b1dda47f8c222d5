"""Pictures from folders, lists, patterns, tar files and videos: all found, in order, with distinct names."""

import tarfile

import cv2
import numpy as np
import pytest
from PIL import Image

from sparse_detr.errors import ImageError, UserError
from sparse_detr.predict.sources import find_inputs


def save(path, value=0, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg", "deep/c.PNG"):
        save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.md").write_text("no image")
    return tmp_path


def write_video(path, values):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for value in values:
        writer.write(np.full((48, 64, 3), (0, 0, value), np.uint8))  # BGR: red
    writer.release()


def write_tar(path, *files, extra=()):
    with tarfile.open(path, "w") as archive:
        for file in (*files, *extra):
            archive.add(file, file.name)
    return path


def test_a_folder_is_read_with_its_subfolders_in_the_order_of_names(folder):
    inputs = find_inputs([str(folder / "images")])
    assert inputs.names() == ["a.jpg", "b.png", "deep/c.PNG"]
    assert list(inputs.read(1, 3)) == [str(folder / "images" / name) for name in ("b.png", "deep/c.PNG")]


def test_a_list_names_files_relative_to_itself(folder):
    content = "# held out\nimages/b.png\n\nimages/deep/c.PNG\n"
    (folder / "list.txt").write_text(content)
    (folder / "with_bom.txt").write_text(content.replace("# held out\n", ""), encoding="utf-8-sig")
    assert find_inputs([str(folder / "with_bom.txt")]).names() == ["images/b.png", "images/deep/c.PNG"]
    inputs = find_inputs([str(folder / "list.txt")])
    assert inputs.names() == ["images/b.png", "images/deep/c.PNG"]
    assert list(inputs.read(0, 2)) == [str(folder / "images/b.png"), str(folder / "images/deep/c.PNG")]


def test_a_file_that_is_named_twice_is_read_once_and_equal_names_get_a_number(folder):
    other = save(folder / "more" / "b.png")
    inputs = find_inputs([str(folder / "images" / "b.png"), str(folder / "images" / "*.png"), str(other)])
    assert inputs.names() == ["b.png", "b-2.png"]


def test_hidden_images_are_left_out_and_linked_folders_are_entered(folder):
    for name in (".ipynb_checkpoints/a-checkpoint.png", "._a.jpg", "deep/._c.png"):
        save(folder / "images" / name)
    save(folder / "elsewhere" / "d.png")
    (folder / "images" / "linked").symlink_to(folder / "elsewhere")
    assert find_inputs([str(folder / "images")]).names() == ["a.jpg", "b.png", "deep/c.PNG", "linked/d.png"]
    with tarfile.open(folder / "some.tar", "w") as archive:
        archive.add(folder / "images", "./images")
    names = find_inputs([str(folder / "some.tar")]).names()
    assert sorted(names) == ["some.tar/images/a.jpg", "some.tar/images/b.png", "some.tar/images/deep/c.PNG"]


def test_a_pattern_names_what_the_shell_would_put_in_its_place(folder):
    write_video(folder / "clip.mp4", [40])
    write_tar(folder / "some.tar", folder / "images" / "a.jpg")
    found = find_inputs([str(folder / "*")])
    assert found.names() == ["a.jpg", "b.png", "deep/c.PNG", "clip.mp4/000000", "some.tar/a.jpg"]
    assert found.names() == find_inputs([str(path) for path in sorted(folder.iterdir())]).names()
    (folder / "list.txt").write_text("clip.mp4\n")
    assert find_inputs([str(folder / "*.mp4"), str(folder / "list.txt")]).names() == ["clip.mp4/000000"]  # once


def test_what_the_run_writes_is_left_out(folder):
    written = folder / "images" / "found" / "pictures"
    save(written / "sub" / "a.jpg")
    assert find_inputs([str(folder / "images")], [written]).names() == ["a.jpg", "b.png", "deep/c.PNG"]
    with pytest.raises(UserError, match="pictures is where this run writes; give another --output"):
        find_inputs([str(written)], [written])
    names = find_inputs([str(folder / "images" / "*")], [folder / "images" / "b.png", written]).names()
    assert names == ["a.jpg", "c.PNG", "notes.md"]


def test_names_are_distinct_over_all_sources(folder):
    write_tar(folder / "some.tar", *[folder / "images" / "a.jpg"] * 3)
    (folder / "list.txt").write_text("../some.tar/a.jpg\n")
    names = find_inputs([str(folder / "list.txt"), str(folder / "some.tar")]).names()
    assert names == ["some.tar/a.jpg", "some.tar/a-2.jpg", "some.tar/a-3.jpg", "some.tar/a-4.jpg"]


def test_all_kinds_together_can_be_read_from_any_place_on(folder):
    files = [save(folder / f"{value}.png", value) for value in (10, 20, 30)]
    write_tar(folder / "some.tar", *files)
    write_video(folder / "clip.mp4", [40, 140, 240])
    inputs = find_inputs([str(folder / "clip.mp4"), str(folder / "images" / "a.jpg"), str(folder / "some.tar")])
    assert inputs.names() == [
        "a.jpg",
        *(f"clip.mp4/{index:06d}" for index in range(3)),
        *(f"some.tar/{value}.png" for value in (10, 20, 30)),
    ]
    assert len(inputs) == 7

    def red(picture):
        return int(np.asarray(Image.open(picture) if isinstance(picture, str) else picture)[0, 0, 0])

    whole = [red(picture) for picture in inputs.read(0, 7)]
    assert whole[4:] == [10, 20, 30]
    assert whole[1:4] == [pytest.approx(value, abs=12) for value in (40, 140, 240)]  # MPEG-4 is lossy
    for start in range(7):
        for stop in range(start, 8):
            assert [red(picture) for picture in inputs.read(start, stop)] == whole[start:stop]
    ((name, video, first),) = inputs.videos()
    assert (name, first, video.frames_per_second) == ("clip.mp4", 1, 10)


def test_a_torn_image_in_a_tar_file_is_an_error_that_is_passed_on(folder):
    torn = folder / "torn.jpg"
    torn.write_bytes((folder / "images" / "a.jpg").read_bytes()[:40])
    write_tar(folder / "some.tar", torn, folder / "images" / "b.png")
    first, second = find_inputs([str(folder / "some.tar")]).read(0, 2)
    assert isinstance(first, ImageError)
    assert "torn.jpg cannot be decoded" in str(first)
    assert second.size == (8, 6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", None, "empty: no image found; give images, folders"),
        ("gone.png", None, "gone.png: no image found"),
        ("words.tar", b"no tar", "words.tar cannot be read as a tar file"),
        ("words.mp4", b"no video", "words.mp4 cannot be read as a video"),
        ("binary.txt", b"\xff\xfe\x00", "binary.txt cannot be read as a list"),
        ("blank.txt", b"\n\n", "blank.txt: no image found"),
    ],
)
def test_what_gives_no_picture_is_refused(tmp_path, name, content, message):
    if content is None and "." not in name:
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        find_inputs([str(tmp_path / name)])


def test_a_file_in_a_tar_file_that_is_no_image_is_named(folder):
    note = folder / "note.png"
    note.write_text("no image")
    (error,) = find_inputs([str(write_tar(folder / "some.tar", note))]).read(0, 1)
    assert str(error).endswith("some.tar: note.png is not an image in a known format; replace it")


@pytest.mark.parametrize("place", [40, 300])
def test_a_compressed_tar_file_with_a_wrong_byte_is_refused_whole(tmp_path, place):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.png", "a.png")
    content = bytearray((tmp_path / "a.tar.gz").read_bytes())
    content[place : place + 8] = b"\xff" * 8
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match="a.tar.gz cannot be read as a tar file"):
        find_inputs([str(tmp_path / "a.tar.gz")])


def test_a_tar_file_without_images_is_refused(tmp_path):
    note = tmp_path / "note.md"
    note.write_text("no image")
    with pytest.raises(UserError, match="holds no image"):
        find_inputs([str(write_tar(tmp_path / "a.tar", note))])


class CountingVideo:
    """OpenCV's reader, which counts what is opened, decoded and released."""

    opened = grabbed = released = 0
    real = cv2.VideoCapture

    def __init__(self, path):
        type(self).opened += 1
        self.reader = self.real(path)

    def grab(self):
        type(self).grabbed += 1
        return self.reader.grab()

    def release(self):
        type(self).released += 1
        self.reader.release()

    def __getattr__(self, name):
        return getattr(self.reader, name)


@pytest.fixture
def counting(monkeypatch):
    counting = type("Counting", (CountingVideo,), {})
    monkeypatch.setattr(cv2, "VideoCapture", counting)
    return counting


@pytest.mark.parametrize("step", [1, 2])  # every shard of two frames, or every second one
def test_shards_of_a_video_are_read_in_one_pass(tmp_path, counting, step):
    write_video(tmp_path / "clip.mp4", [20 * index for index in range(12)])
    inputs = find_inputs([str(tmp_path / "clip.mp4")])
    whole = [frame[0, 0, 0] for frame in inputs.read(0, 12)]
    counting.opened = counting.grabbed = counting.released = 0
    starts = range(0, 12, 2 * step)
    found = {start: [frame[0, 0, 0] for frame in inputs.read(start, start + 2)] for start in starts}
    assert found == {start: whole[start : start + 2] for start in starts}
    inputs.close()
    assert (counting.opened, counting.released) == (1, 1)
    assert counting.grabbed == 12 - 2 * (step - 1)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_shards_of_a_tar_file_are_read_in_one_pass_each_to_detect_and_to_draw(tmp_path, monkeypatch, mode):
    path = tmp_path / "some.tar.gz"
    with tarfile.open(path, mode) as archive:
        for value in range(0, 120, 10):
            archive.add(save(tmp_path / f"{value}.png", value), f"{value}.png")
    inputs = find_inputs([str(path)])
    opened, real = [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda path: opened.append(real(path)) or opened[-1])
    for start in range(0, 12, 2):
        detected = list(inputs.read(start, start + 2))
        drawn = list(inputs.read_images(start, start + 2))
        assert [image.getpixel((0, 0))[0] for image in detected] == [10 * start, 10 * start + 10]
        assert [(number, image.getpixel((0, 0))[0]) for number, image in drawn] == [
            (start, 10 * start),
            (start + 1, 10 * start + 10),
        ]
    assert len(opened) == 2
    assert all(archive.closed for archive in opened)


def test_frames_are_not_decoded_for_pictures_of_images(tmp_path, counting):
    write_video(tmp_path / "clip.mp4", [40, 140])
    inputs = find_inputs([str(save(tmp_path / "a.png")), str(tmp_path / "clip.mp4")])
    counting.grabbed = 0
    assert list(inputs.read_images(0, 3)) == [(0, str(tmp_path / "a.png"))]
    assert counting.grabbed == 0


def test_a_file_is_closed_when_others_are_read_and_a_read_that_is_left_gives_the_same_again(tmp_path, counting):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, [40, 140, 240])
    inputs = find_inputs([str(tmp_path / name) for name in ("a.mp4", "b.mp4")])
    counting.opened = counting.released = 0
    list(inputs.read(0, 2))
    assert (counting.opened, counting.released) == (1, 0)
    list(inputs.read(3, 4))
    assert (counting.opened, counting.released) == (2, 1)
    left = inputs.read(4, 6)
    next(left)
    whole = [frame[0, 0, 0] for frame in inputs.read(3, 6)]  # while the other one is at work
    assert [frame[0, 0, 0] for frame in inputs.read(3, 6)] == whole
    assert next(left)[0, 0, 0] == whole[2]
