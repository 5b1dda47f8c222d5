"""A run is divided into shards; a finished one is never done again, and another run is refused."""

import json

import pytest

from sparse_detr.errors import UserError
from sparse_detr.predict.job import Found, Job, Part, stems_of

NAMES = [f"{index}.jpg" for index in range(7)]


def make(folder, names=NAMES, classes=("cell",), **setting):
    return Job(folder, names, {"weights": "w", **setting}, classes, shard_size=3)


def finish(job, shard):
    job.write(shard, [Found(number, job.names[number]) for number in job.pictures(shard)])


def test_seven_pictures_are_three_shards_of_three(tmp_path):
    job = make(tmp_path)
    assert [list(job.pictures(shard)) for shard in range(len(job))] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_finished_shard_does_not_wait(tmp_path):
    job = make(tmp_path)
    assert job.waiting(Part()) == [0, 1, 2]
    finish(job, 1)
    assert make(tmp_path).waiting(Part()) == [0, 2]
    assert not job.is_done()
    finish(job, 0)
    finish(job, 2)
    assert job.is_done()
    assert [found.number for found in job.read()] == list(range(7))
    assert [found.number for found in job.read(2, 4)] == [2, 3]


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_the_parts_have_every_shard_once(tmp_path, number):
    job = make(tmp_path)
    parts = [job.waiting(Part.parse(f"{index}/{number}")) for index in range(1, number + 1)]
    assert sorted(shard for part in parts for shard in part) == [0, 1, 2]


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "-1/2", "1/0", "1/2/3"])
def test_a_part_that_does_not_exist_is_refused(text):
    with pytest.raises(UserError, match=f"--shard {text} is no part of the work; give i/n"):
        Part.parse(text)


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match="is of a run with weights 'w', not 'x'; give another --output"):
        make(tmp_path, weights="x")
    with pytest.raises(UserError, match="is of 7 other pictures than these 6"):
        make(tmp_path, NAMES[1:])
    with pytest.raises(UserError, match="is of a run with class 0 'cell', not 'plate'; give another --output"):
        make(tmp_path, classes=["plate"])
    with pytest.raises(UserError, match="is of a run with a number of classes of 1, not 2"):
        make(tmp_path, classes=["cell", "plate"])
    with pytest.raises(UserError, match="is of a run with model.gone None, not '1'"):
        make(tmp_path, **{"model.gone": "1"})
    (tmp_path / "predict.json").write_text("{")
    with pytest.raises(UserError, match="is no record of `sparse-detr predict`"):
        make(tmp_path)


@pytest.mark.parametrize("content", ["[", json.dumps([{"number": 0}]), json.dumps([{"number": 5, "name": "5.jpg"}])])
def test_a_changed_shard_is_named(tmp_path, content):
    job = make(tmp_path)
    for shard in range(3):
        finish(job, shard)
    job.path(1).write_text(content)
    with pytest.raises(UserError, match=r"00001.json is .*; remove it and run the command again"):
        list(job.read())


def test_names_that_differ_only_by_their_suffix_keep_it():
    assert stems_of(["a.jpg", "b.png", "sub/a.jpg", "b.jpg"]) == ["a", "b.png", "sub/a", "b.jpg"]
    assert stems_of(["a.jpg", "a.png", "a.jpg.bmp"]) == ["a.jpg", "a.png", "a.jpg.bmp"]
    assert stems_of(["clip/000001", "a.b/c.png", "."]) == ["clip/000001", "a.b/c", "."]
