"""Own data in COCO, YOLO, Pascal VOC and CSV, in the layouts that exports have."""

import csv
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparse_detr.data.annotations import check_annotations, coco_file_of, read_coco_file
from sparse_detr.data.formats import find_data_set, read_own_parts, write_parts
from sparse_detr.data.formats.split import make_split, saved_split
from sparse_detr.errors import UserError
from tests.data import copies

FORMS = list(copies.WRITERS)


def train_of(path, **options):
    return read_own_parts(path, share=0, **options).train


def codes(part):
    return {finding.code: finding for finding in part.findings}


def boxes(part):
    return [item["bbox"] for item in part.content["annotations"]]


def comparable(part):
    """Return the content without the folders of the images, which differ between the forms."""
    names = [Path(image["file_name"]).name for image in part.content["images"]]
    sizes = [(image["id"], image["width"], image["height"]) for image in part.content["images"]]
    return names, sizes, part.content["annotations"], part.content["categories"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_numbers_that_were_drawn(tmp_path, form):
    train, val = copies.drawings(6), copies.drawings(4, start=20)
    own = read_own_parts(copies.write(form, tmp_path / "data", {"train": train, "val": val}))

    for part, made in ((own.train, train), (own.val, val)):
        drawn = copies.coco_content(made)
        names = [image["file_name"] for image in drawn["images"]]
        sizes = [(image["id"], image["width"], image["height"]) for image in drawn["images"]]
        assert comparable(part) == (names, sizes, drawn["annotations"], drawn["categories"])
        assert all((part.images / image["file_name"]).is_file() for image in part.content["images"])
    assert f"is read as {form}, part 'train': 6 images for training" in own.decisions[0]
    assert not [finding for finding in own.findings if finding.severity != "note"]


@pytest.mark.parametrize("form", FORMS)
def test_a_split_is_made_where_none_is_given_and_is_the_same_in_every_form(tmp_path, form):
    made = copies.drawings(10)
    root = copies.write(form, tmp_path / "data", {None: made})
    own = read_own_parts(root, share=0.3, seed=1)
    chosen = make_split([f"{drawing.stem}.png" for drawing in made], share=0.3, seed=1)

    assert [Path(name).name for name in own.train.file_names] == chosen.train
    assert [Path(name).name for name in own.val.file_names] == chosen.val
    assert len(chosen.val) == 3
    assert own.train.content["categories"] == own.val.content["categories"]
    assert "3 of the 10 images are taken for it (by image, share 0.3, seed 1)" in own.decisions[-1]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_written_into_the_folder_of_the_data(tmp_path, form):
    root = copies.write(form, tmp_path / "data", {None: copies.drawings(5)})
    before = sorted(root.rglob("*"))
    own = read_own_parts(root, folder=tmp_path / "out")
    paths = write_parts([("train", own.train), ("val", own.val)], tmp_path / "out")

    assert sorted(root.rglob("*")) == before
    assert [path.parent for path in paths] == [tmp_path / "out"] * 2
    assert json.loads(paths[0].read_text())["categories"] == own.train.content["categories"]
    assert write_parts([("train", own.train)], tmp_path / "out") == paths[:1]


def test_a_coco_file_is_used_as_it_is(tmp_path):
    root = copies.write("COCO", tmp_path / "data", {"train": copies.drawings(3), "val": copies.drawings(2, start=9)})
    own = read_own_parts(root)

    assert write_parts([("train", own.train)], tmp_path / "out") == [root / "annotations" / "instances_train.json"]
    assert not (tmp_path / "out").exists()


def test_a_saved_split_keeps_every_image_on_its_side_when_images_are_added(tmp_path):
    names = [f"{number}.png" for number in range(20)]
    first = saved_split(tmp_path / "split.json", names, share=0.25, seed=0)
    assert saved_split(tmp_path / "split.json", names, share=0.25, seed=0) == first
    more = [f"{number}.png" for number in range(60)]
    second = saved_split(tmp_path / "split.json", more, share=0.25, seed=0)

    assert set(first.val) == set(second.val) & set(names)
    assert set(first.train) == set(second.train) & set(names)
    assert sorted([*second.train, *second.val]) == sorted(more)
    assert len(second.val) > len(first.val)


def test_a_saved_split_keeps_every_image_on_its_side_when_the_common_folder_changes(tmp_path):
    path = tmp_path / "split.json"
    names = [f"{number}.png" for number in range(20)]
    first = saved_split(path, names, share=0.25, seed=0)
    both = [f"a/{name}" for name in names] + [f"b/{name}" for name in names]  # as if b were new beside a
    second = saved_split(path, both, share=0.25, seed=0)
    assert {name for name in second.val if name.startswith("a/")} == {f"a/{name}" for name in first.val}
    assert saved_split(path, both, share=0.25, seed=0) == second
    of_b = {name.removeprefix("b/") for name in second.val if name.startswith("b/")}
    third = saved_split(path, names[:19], share=0.25, seed=0)  # ambiguous: of a, which comes first
    assert set(third.val) == {name for name in first.val if name in names[:19]}
    deeper = saved_split(path, [f"x/y/{name}" for name in names], share=0.25, seed=0)
    assert set(third.val) == {name.removeprefix("x/y/") for name in deeper.val} & set(names[:19])
    assert of_b  # the numbers depend on the names alone


def test_a_saved_split_is_kept_when_images_in_another_folder_are_added(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    for folder, start in (("a", 0), ("b", 40)):
        write_folders("YOLO", root, {folder: copies.drawings(20, start=start)})
        own = read_own_parts(root, folder=out)
        names = [{Path(name).name for name in part.file_names} for part in (own.train, own.val)]
        if folder == "a":
            before = names
    assert all(old <= new for old, new in zip(before, names))
    assert sum(map(len, names)) == 40
    shutil.rmtree(root / "images" / "b")
    own = read_own_parts(root, folder=out)
    assert [{Path(name).name for name in part.file_names} for part in (own.train, own.val)] == before


def test_a_saved_split_of_another_share_or_seed_is_refused_and_one_of_other_data_is_replaced(tmp_path):
    path, names = tmp_path / "split.json", ["a.png", "b.png", "c.png"]
    saved_split(path, names, share=0.3, seed=0)
    with pytest.raises(UserError, match="divides these data with share 0.3 and seed 0, not 0.5 and 0"):
        saved_split(path, names, share=0.5, seed=0)
    with pytest.raises(UserError, match="not 0.3 and 7"):
        saved_split(path, names, share=0.3, seed=7)
    assert saved_split(path, ["x.png", "y.png"], share=0.5, seed=7).seed == 7
    path.write_text("{}")
    with pytest.raises(UserError, match="is no split that this program has written"):
        saved_split(path, names, share=0.3, seed=0)


def test_another_seed_gives_another_split_and_both_sides_have_an_image():
    names = [f"{number}.png" for number in range(50)]
    assert make_split(names, share=0.2, seed=0).val != make_split(names, share=0.2, seed=1).val
    for share in (0.01, 0.99):
        split = make_split(names[:2], share=share, seed=0)
        assert len(split.train) == len(split.val) == 1
    for share in (0, 1, -0.2):
        with pytest.raises(UserError, match="give a number between 0 and 1"):
            make_split(names, share=share, seed=0)
    with pytest.raises(UserError, match="1 image cannot be divided"):
        make_split(names[:1], share=0.2, seed=0)


# Layouts of exports.


def test_roboflows_coco_export_is_read(tmp_path):
    for folder, made in {"train": copies.drawings(3), "valid": copies.drawings(2, start=9), "test": []}.items():
        copies.draw(tmp_path / folder, made)
        (tmp_path / folder / "_annotations.coco.json").write_text(json.dumps(copies.coco_content(made)))
    own = read_own_parts(tmp_path)

    assert own.train.images == tmp_path / "train"
    assert own.val.json_file == tmp_path / "valid" / "_annotations.coco.json"
    assert read_own_parts(tmp_path / "train", tmp_path / "valid").val.images == tmp_path / "valid"
    assert set(find_data_set(tmp_path).parts) == {"train", "val", "test"}


def test_roboflows_yolo_export_with_its_wrong_paths_is_read(tmp_path):
    for folder, made in {"train": copies.drawings(3), "valid": copies.drawings(2, start=9)}.items():
        copies.draw(tmp_path / folder / "images", made)
        (tmp_path / folder / "labels").mkdir()
        for drawing in made:
            (tmp_path / folder / "labels" / f"{drawing.stem}.txt").write_text("".join(copies.yolo_lines(drawing)))
    names = f"names: {copies.NAMES}\nnc: 3\n"
    (tmp_path / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n{names}")
    own = read_own_parts(tmp_path / "data.yaml")

    assert len(own.train.content["images"]) == 3
    assert boxes(own.val) == [item["bbox"] for item in copies.coco_content(copies.drawings(2, start=9))["annotations"]]
    (tmp_path / "data.yaml").write_text(names)  # the folders tell the parts
    assert len(read_own_parts(tmp_path).val.content["images"]) == 2
    assert len(read_own_parts(tmp_path / "train", tmp_path / "valid").val.content["images"]) == 2


def test_roboflows_voc_and_csv_exports_are_read(tmp_path):
    for folder, made in {"train": copies.drawings(3), "valid": copies.drawings(2, start=9)}.items():
        for form in ("voc", "csv"):
            copies.draw(tmp_path / form / folder, made)
        for drawing in made:
            (tmp_path / "voc" / folder / f"{drawing.stem}.xml").write_text(copies.voc_text(drawing))
        header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
        rows = [[f"{d.stem}.png", d.width, d.height, s.name, *s[1:]] for d in made for s in d.shapes]
        with open(tmp_path / "csv" / folder / "_annotations.csv", "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    for form in ("voc", "csv"):
        own = read_own_parts(tmp_path / form)
        drawn = copies.coco_content(copies.drawings(3))
        assert boxes(own.train) == [item["bbox"] for item in drawn["annotations"]]
        assert own.val is not None
        assert own.train.class_names == own.val.class_names


def test_yolo_texts_beside_the_images_with_classes_txt_are_read(tmp_path):
    made = copies.drawings(4)
    copies.draw(tmp_path, made)
    for drawing in made:
        (tmp_path / f"{drawing.stem}.txt").write_text("".join(copies.yolo_lines(drawing)))
    with pytest.raises(UserError, match=r"class names of the YOLO labels .* write one name a line into classes.txt"):
        train_of(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(copies.NAMES))

    assert boxes(train_of(tmp_path)) == [item["bbox"] for item in copies.coco_content(made)["annotations"]]


def test_a_yolo_list_of_images_and_a_path_in_the_yaml_are_followed(tmp_path):
    root = copies.write("YOLO", tmp_path / "data", {"train": copies.drawings(4)})
    (root / "some.txt").write_text("./images/train/image_00.png\nimages/train/image_02.png\n")
    yaml = tmp_path / "elsewhere.yaml"
    yaml.write_text(f"path: {root}\ntrain: some.txt\nnames: {{0: apple, 1: cup, 2: zebra}}\n")

    assert [Path(name).name for name in train_of(yaml).file_names] == ["image_00.png", "image_02.png"]


def test_images_of_a_coco_file_are_found_in_an_unusual_folder(tmp_path):
    made = copies.drawings(3)
    copies.draw(tmp_path / "some" / "pictures", made)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(copies.coco_content(made)))
    assert train_of(path).images == tmp_path / "some" / "pictures"
    shutil.rmtree(tmp_path / "some")
    with pytest.raises(UserError, match=r"no image of .*labels.json is found: looked for image_00.png"):
        train_of(path)


def test_a_table_or_a_coco_file_in_annotations_finds_the_images_beside_that_folder(tmp_path):
    made = {"train": copies.drawings(3), "val": copies.drawings(2, start=9)}
    table = copies.write("CSV", tmp_path / "csv", made)
    (table / "annotations").mkdir()
    for part in made:
        (table / f"{part}.csv").rename(table / "annotations" / f"{part}.csv")
    coco = copies.write("COCO", tmp_path / "coco", made)
    for path in (table / "annotations" / "val.csv", coco / "annotations" / "instances_val.json"):
        part = train_of(path)
        assert all((part.images / name).is_file() for name in part.file_names)
        assert len(part.file_names) == 2
        assert not part.findings


def test_a_csv_may_say_the_part_of_each_row_and_use_other_columns_and_separators(tmp_path):
    copies.draw(tmp_path / "images", copies.drawings(2))
    text = "\ufeffImage;Split;Label;x;y;w;h\nimage_00;train;cup;1;2;10;20\nimage_01;valid;cup;3.5;4;5;6\n"
    (tmp_path / "boxes.csv").write_text(text, encoding="utf-8")
    own = read_own_parts(tmp_path)

    assert boxes(own.train) == [[1, 2, 10, 20]]
    assert boxes(own.val) == [[3.5, 4, 5, 6]]


# Several folders of a part, folders of no part, and parts that are missing.


def write_folders(form, root, folders):
    """Write drawings into folders of YOLO's images/ and labels/, or into folders of Pascal VOC's files."""
    for folder, made in folders.items():
        copies.draw(root / ("images" if form == "YOLO" else "") / folder, made)
        labels = root / "labels" / folder if form == "YOLO" else root / folder
        labels.mkdir(parents=True, exist_ok=True)
        for drawing in made:
            if form == "YOLO":
                (labels / f"{drawing.stem}.txt").write_text("".join(copies.yolo_lines(drawing)))
            else:
                (labels / f"{drawing.stem}.xml").write_text(copies.voc_text(drawing))
    if form == "YOLO":
        (root / "classes.txt").write_text("\n".join(copies.NAMES))
    return root


@pytest.mark.parametrize("form", ["YOLO", "Pascal VOC"])
def test_all_folders_of_a_part_are_read(tmp_path, form):
    first, second = copies.drawings(3), copies.drawings(2, start=9)
    folders = {"train1": first, "train2": second, "valid": copies.drawings(2, start=20), "dev": copies.drawings(1)}
    own = read_own_parts(write_folders(form, tmp_path, folders))

    assert own.train.file_names == [f"train{n}/image_{i:02}.png" for n, i in ((1, 0), (1, 1), (1, 2), (2, 9), (2, 10))]
    drawn = [item["bbox"] for made in (first, second) for item in copies.coco_content(made)["annotations"]]
    assert boxes(own.train) == drawn
    assert own.val.file_names == ["dev/image_00.png", "valid/image_20.png", "valid/image_21.png"]
    assert "no-part" not in codes(own.train)


def test_voc_folders_of_a_part_with_equal_file_names_keep_their_own_images(tmp_path):
    one, other = copies.drawings(1, start=1)[0], copies.drawings(1, start=2)[0]  # of other sizes
    folders = {"train_a": [one], "train_b": [other._replace(stem="image_01")]}
    part = train_of(write_folders("Pascal VOC", tmp_path, folders))
    assert part.file_names == ["train_a/image_01.png", "train_b/image_01.png"]


@pytest.mark.parametrize("form", ["YOLO", "Pascal VOC"])
def test_folders_of_no_part_are_named_and_not_trained_on(tmp_path, form):
    root = write_folders(form, tmp_path, {"train": copies.drawings(3), "cam2": copies.drawings(2, start=9)})
    part = train_of(root)

    assert part.file_names == ["image_00.png", "image_01.png", "image_02.png"]
    assert codes(part)["no-part"].severity == "warning"
    assert codes(part)["no-part"].examples == ("cam2",)
    assert len(find_data_set(root).parts["all"]().file_names) == 2


def test_single_images_beside_yolos_folders_of_parts_are_named(tmp_path):
    root = write_folders("YOLO", tmp_path, {"train": copies.drawings(3), "": copies.drawings(2, start=9)})
    assert codes(train_of(root))["no-part"].examples == ("image_09.png", "image_10.png")
    root = write_folders("YOLO", tmp_path / "flat", {"": copies.drawings(2)}) / "images"
    (root / "image_00.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    copies.draw(root / "test", copies.drawings(1, start=9))
    assert train_of(root).file_names == ["image_00.png", "image_01.png"]


@pytest.mark.parametrize("form", ["COCO", "CSV"])
def test_files_of_no_part_are_named_and_not_trained_on(tmp_path, form):
    root = copies.write(form, tmp_path, {"train": copies.drawings(3), None: copies.drawings(2, start=9)})
    part = train_of(root)
    assert len(part.file_names) == 3
    assert codes(part)["no-part"].examples == ({"COCO": "instances.json", "CSV": "boxes.csv"}[form],)


def test_yolo_folders_of_a_part_with_other_classes_or_with_parts_inside_are_refused(tmp_path):
    for folder in ("train_a", "train_b"):
        write_folders("YOLO", tmp_path / folder, {"": copies.drawings(2)})
    assert len(train_of(tmp_path).file_names) == 4
    (tmp_path / "train_b" / "classes.txt").write_text("zebra\ncup\napple")
    with pytest.raises(UserError, match=r"classes differ in .*train_a/classes.txt and .*train_b/classes.txt"):
        train_of(tmp_path)
    write_folders("YOLO", tmp_path / "train_b", {"train": copies.drawings(1), "val": copies.drawings(1, start=5)})
    with pytest.raises(UserError, match=r"train_b is a data set with the parts train, val, all; name it itself"):
        train_of(tmp_path)


def test_yolo_texts_beside_images_in_subfolders_are_read(tmp_path):
    made = copies.drawings(3)
    folder = tmp_path / "obj_train_data" / "sub"
    copies.draw(folder, made)
    for drawing in made:
        (folder / f"{drawing.stem}.txt").write_text("".join(copies.yolo_lines(drawing)))
    (tmp_path / "obj.names").write_text("\n".join(copies.NAMES))

    assert list(find_data_set(tmp_path).parts) == ["train"]
    for root in (tmp_path, tmp_path / "obj_train_data"):
        assert boxes(train_of(root)) == [item["bbox"] for item in copies.coco_content(made)["annotations"]]


def test_a_part_that_a_data_yaml_names_and_that_is_missing_is_said(tmp_path):
    root = copies.write("YOLO", tmp_path, {"train": copies.drawings(5)})
    names = f"names: {copies.NAMES}\n"
    (root / "data.yaml").write_text(f"train: images/train\nval: nowhere/valid\ntest: no/test\n{names}")
    own = read_own_parts(root)
    missing = [finding for finding in own.findings if finding.code == "missing-part"]
    assert [(finding.severity, finding.examples) for finding in missing] == [
        ("warning", ("val: nowhere/valid",)),
        ("note", ("test: no/test",)),
    ]
    assert "no validation data are found" in own.decisions[-1]

    (root / "data.yaml").write_text(f"train: [images/train, images2]\n{names}")
    with pytest.raises(UserError, match="data.yaml names images2 for train, which does not exist; correct or remove"):
        train_of(root)
    (root / "data.yaml").write_text(f"train: images/trian\nval: images/train\n{names}")
    with pytest.raises(UserError, match="data.yaml names train: images/trian, which does not exist; correct it"):
        train_of(root)
    assert len(find_data_set(root).parts["val"]().file_names) == 5
    (root / "data.yaml").write_text(f"train: images/trian\n{names}")  # the folders tell the parts
    assert codes(train_of(root))["missing-part"].examples == ("train: images/trian",)
    (root / "data.yaml").write_text(f"train: images/train\nval:\ntest: null\n{names}")
    assert "missing-part" not in codes(train_of(root))


def test_val_and_valid_of_a_data_yaml_are_both_read(tmp_path):
    root = copies.write("YOLO", tmp_path, {"a": copies.drawings(2), "b": copies.drawings(3, start=9)})
    (root / "data.yaml").write_text(f"train: images/a\nval: images/a\nvalid: images/b\nnames: {copies.NAMES}\n")
    assert len(read_own_parts(root).val.file_names) == 5


def test_class_names_of_a_data_yaml_are_what_is_written(tmp_path):
    root = copies.write("YOLO", tmp_path, {"train": copies.drawings(3)})
    for names in ("[yes, no, 010]", "{0: yes, 1: no, 2: 010}"):
        (root / "data.yaml").write_text(f"train: images/train\nnc: 3\nnames: {names}\n")
        assert train_of(root).class_names == ["yes", "no", "010"]


def test_paths_with_backslashes_are_read_in_yolo(tmp_path):
    root = copies.write("YOLO", tmp_path, {"train": copies.drawings(3)})
    (root / "data.yaml").write_text(f"train: .\\images\\train\nnames: {copies.NAMES}\n")
    whole = train_of(root)
    (root / "data.yaml").write_text(f"train: list.txt\nnames: {copies.NAMES}\n")
    lines = [f"images\\train\\{name}\r\n" for name in whole.file_names]
    (root / "list.txt").write_text("".join(lines))

    assert boxes(whole) == boxes(train_of(root)) != []
    assert whole.file_names == train_of(root).file_names


def test_lists_of_voc_may_have_names_with_spaces_and_numbers_behind_them(tmp_path):
    made = [drawing._replace(stem=f"my photo_{n}") for n, drawing in enumerate(copies.drawings(4))]
    root = copies.write("Pascal VOC", tmp_path, {"train": made[:3], "val": made[3:]})
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").write_text("my photo_0\r\nmy photo_1  1\nmy photo_2 -1\n")
    own = read_own_parts(root)
    assert own.train.file_names == ["my photo_0.png", "my photo_1.png", "my photo_2.png"]
    assert own.val.file_names == ["my photo_3.png"]
    (lists / "train.txt").rename(lists / "trainval.txt")
    assert codes(train_of(root))["unused-list"].examples == ("val.txt",)


def test_file_names_of_windows_in_a_coco_file_are_found(tmp_path):
    for place in ("images", "some/other/pictures"):
        root, made = tmp_path / place.replace("/", "_"), copies.drawings(3)
        copies.draw(root / place / "sub", made)
        content = copies.coco_content(made)
        for image in content["images"]:
            image["file_name"] = f"sub\\{image['file_name']}"
        (root / "result.json").write_text(json.dumps(content))
        part = train_of(root)

        assert (part.images, part.file_names) == (root / place, [f"sub/image_0{number}.png" for number in range(3)])
        assert codes(part)["names-of-windows"].severity == "note"
        (path,) = write_parts([("train", part)], tmp_path / "out")
        assert json.loads(path.read_text())["images"] == part.content["images"]
    copies.draw(root / place, [made[0]])
    (root / place / "image_00.png").rename(root / place / "sub\\image_00.png")  # a file of this very name
    assert train_of(root).file_names == ["sub/image_01.png", "sub/image_02.png", "sub\\image_00.png"]


def test_rows_of_no_part_are_counted_by_value(tmp_path):
    copies.draw(tmp_path / "images", copies.drawings(5))
    rows = [
        f"image_0{n}.png,1,2,3,4,cup,{part}\n" for n, part in enumerate(("train", "valid", "holdout", "holdout", ""))
    ]
    (tmp_path / "boxes.csv").write_text("file,x1,y1,x2,y2,class,split\n" + "".join(rows))
    for path in (tmp_path, tmp_path / "boxes.csv"):
        finding = codes(train_of(path))["no-part"]
        assert (finding.severity, finding.count, finding.examples) == ("warning", 3, ("'holdout': 2", "'': 1"))
        assert "no-part" not in codes(find_data_set(path).parts["all"]())


def test_two_spellings_of_a_file_in_a_table_are_one_image(tmp_path):
    copies.draw(tmp_path / "images", copies.drawings(2))
    names = ("image_00.png", "./images/image_00.png", "image_01", "images/../images/image_00.png", "no.png", "./no.png")
    rows = [f"{name},{n},2,9,9,cup\n" for n, name in enumerate(names)]
    (tmp_path / "boxes.csv").write_text("file,x1,y1,x2,y2,class\n" + "".join(rows))
    part = train_of(tmp_path)

    assert [Path(name).name for name in part.file_names] == ["image_00.png", "image_01.png", "no.png"]
    found = {item["id"]: [] for item in part.content["images"]}
    for item in part.content["annotations"]:
        found[item["image_id"]].append(item["bbox"][0])
    assert list(found.values()) == [[0, 1, 3], [2], [4, 5]]


# Rules of the forms.


def test_shares_with_six_decimals_give_whole_pixels_back_and_others_stay(tmp_path):
    Image.new("RGB", (1919, 1079)).save(tmp_path / "a.png")
    x, y, w, h = (100 + 1337) / 2 / 1919, (7 + 900) / 2 / 1079, (1337 - 100) / 1919, (900 - 7) / 1079
    (tmp_path / "a.txt").write_text(f"0 {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n0 0.5 0.5 0.1003 0.1\n")
    (tmp_path / "classes.txt").write_text("thing")
    whole, broken = boxes(train_of(tmp_path))

    assert whole == [100, 7, 1237, 893]
    assert broken[2] == pytest.approx(0.1003 * 1919)


def test_polygons_become_the_box_around_them_and_that_is_said(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.1 0.2 0.5 0.2 0.3 0.9\n0 0.2 0.2 0.4 0.2 0.4 0.4 0.2 0.4\n")
    (tmp_path / "classes.txt").write_text("thing")
    part = train_of(tmp_path)

    assert boxes(part) == [[10, 10, 40, 35], [20, 10, 20, 10]]
    assert str(codes(part)["boxes-from-polygons"]) == "2 labels are polygons; the box around each is taken"


def test_a_polygon_in_voc_becomes_a_box_and_keypoints_in_yolo_are_left_out(tmp_path):
    root = copies.write("Pascal VOC", tmp_path / "voc", {None: copies.drawings(2)})
    points = "<polygon><x1>3</x1><y1>4</y1><x2>9</x2><y2>4</y2><x3>9</x3><y3>12</y3></polygon>"
    text = f"<annotation><object><name>cup</name>{points}</object></annotation>"
    (root / "Annotations" / "image_00.xml").write_text(text)
    assert boxes(train_of(root)) == [[3, 4, 6, 8]]

    root = copies.write("YOLO", tmp_path / "yolo", {"train": copies.drawings(2)})
    with open(root / "data.yaml", "a") as file:
        file.write("kpt_shape: [2, 3]\n")
    (root / "labels" / "train" / "image_00.txt").write_text("0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 2\n")
    assert boxes(train_of(root))[0] == [12, 16, 24, 32]
    assert "shares-as-pixels" not in codes(train_of(root))


def test_masks_without_boxes_in_a_coco_file_are_noticed(tmp_path):
    root = copies.write("COCO", tmp_path / "data", {"train": copies.drawings(3)})
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    assert not train_of(root).needs_masks
    del content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    path.write_text(json.dumps(content))
    assert train_of(root).needs_masks


def test_the_voc_challenge_counts_pixels_from_one_and_other_files_do_not(tmp_path):
    root = copies.write("Pascal VOC", tmp_path / "data", {None: copies.drawings(2)})
    path = root / "Annotations" / "image_00.xml"
    box = boxes(train_of(root))[0]
    source = "<annotation><source><database>The VOC2007 Database</database></source>"
    path.write_text(path.read_text().replace("<annotation>", source))
    part = train_of(root)

    assert boxes(part)[0] == [box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1]
    assert codes(part)["pixels-from-one"].severity == "note"


def test_images_without_a_voc_file_are_left_out_and_those_without_a_yolo_file_are_negatives(tmp_path):
    voc = copies.write("Pascal VOC", tmp_path / "voc", {None: copies.drawings(4)})
    (voc / "Annotations" / "image_01.xml").unlink()
    yolo = copies.write("YOLO", tmp_path / "yolo", {"train": copies.drawings(4)})
    (yolo / "labels" / "train" / "image_01.txt").unlink()

    assert len(train_of(voc).content["images"]) == 3
    assert codes(train_of(voc))["image-without-annotation"].examples == ("image_01.png",)
    assert len(train_of(yolo).content["images"]) == 4
    assert codes(train_of(yolo))["unlabelled-image"].examples == ("image_01.png", "image_03.png")
    for number in (0, 2):
        (yolo / "labels" / "train" / f"image_0{number}.txt").unlink()
    (yolo / "labels" / "train" / "other.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert codes(train_of(yolo))["unlabelled-image"].severity == "warning"
    assert codes(train_of(yolo))["label-without-image"].examples == ("other.txt",)
    table = copies.write("CSV", tmp_path / "csv", {None: copies.drawings(4)})
    rows = (table / "boxes.csv").read_text().splitlines()
    (table / "boxes.csv").write_text("\n".join(row for row in rows if "image_01" not in row))
    assert codes(train_of(table))["image-without-annotation"].examples == ("image_01.png",)


def test_a_turned_image_has_the_size_that_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("thing")
    part = train_of(tmp_path)

    assert (part.content["images"][0]["width"], part.content["images"][0]["height"]) == (20, 40)
    assert boxes(part) == [[5, 10, 10, 20]]


def test_missing_and_damaged_images_stay_in_the_list_for_the_checks(tmp_path):
    root = copies.write("CSV", tmp_path / "csv", {"train": copies.drawings(3)})
    (root / "images" / "image_00.png").unlink()
    (root / "images" / "image_01.png").write_bytes(b"no image")
    assert len(train_of(root).content["images"]) == 3
    yolo = copies.write("YOLO", tmp_path / "yolo", {"train": copies.drawings(3)})
    (yolo / "images" / "train" / "image_00.png").write_bytes(b"")
    image = train_of(yolo).content["images"][0]
    assert (image["file_name"], image["width"]) == ("image_00.png", 1)


def test_classes_of_both_parts_are_numbered_together(tmp_path):
    train = [copies.Drawing("image_00", 64, 48, [copies.Shape("zebra", 1, 1, 9, 9)])]
    val = [copies.Drawing("image_01", 64, 48, [copies.Shape("apple", 1, 1, 9, 9)])]
    own = read_own_parts(copies.write("Pascal VOC", tmp_path / "data", {"train": train, "val": val}))

    assert own.train.class_names == own.val.class_names == ["apple", "zebra"]
    assert own.train.content["annotations"][0]["category_id"] == 2


def test_classes_of_two_forms_are_matched_by_name(tmp_path):
    train, val = copies.drawings(4), copies.drawings(3, start=9)
    coco = copies.write("COCO", tmp_path / "coco", {"train": train})
    path = coco / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for item in content["categories"]:
        item["id"] += 10
    for item in content["annotations"]:
        item["category_id"] += 10
    path.write_text(json.dumps(content))
    own = read_own_parts(coco, copies.write("CSV", tmp_path / "csv", {"val": val}))
    assert own.train.content["categories"] == own.val.content["categories"]

    other = [copies.Drawing("image_30", 64, 48, [copies.Shape("horse", 1, 1, 9, 9)])]
    with pytest.raises(UserError, match=r"has boxes of 'horse', which the other part does not name; its classes are"):
        read_own_parts(coco, copies.write("CSV", tmp_path / "csv2", {"val": other}))


def test_a_list_of_classes_beside_voc_gives_their_order_if_it_is_complete(tmp_path):
    root = copies.write("Pascal VOC", tmp_path / "data", {None: copies.drawings(6)})
    (root / "labels.txt").write_text("zebra\ncup\napple\nunused\n")
    assert train_of(root).class_names == ["zebra", "cup", "apple", "unused"]
    (root / "labels.txt").write_text("zebra\n")
    part = train_of(root)
    assert part.class_names == ["apple", "cup", "zebra"]
    assert codes(part)["incomplete-class-list"].examples == ("apple", "cup")


# What cannot be read is refused, with all entries at once.


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("0 0.5 0.5 0.1", "unreadable-annotation", "3 numbers after the class; a box has 4"),
        ("0 0.5 0.5 0.1 x", "unreadable-annotation", "'x' is no number"),
        ("0 0.5 nan 0.1 0.1", "unreadable-annotation", "'nan' is no finite number"),
        ("3 0.5 0.5 0.1 0.1", "unknown-class", "image_00.txt:1: 3"),
        ("0 32 24 10 10", "shares-as-pixels", "image_00.txt:1"),
    ],
)
def test_faults_of_yolo_lines_are_named_with_file_and_line(tmp_path, line, code, message):
    root = copies.write("YOLO", tmp_path / "data", {"train": copies.drawings(3)})
    (root / "labels" / "train" / "image_00.txt").write_text(f"{line}\n")
    finding = codes(train_of(root))[code]
    assert message in str(finding)
    assert finding.is_error == (code != "shares-as-pixels")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "no element found"),
        ("<!--<annotation>--><labels/>", "its root is <labels>"),
        ("<annotation><object><name>cup</name></object></annotation>", "'cup' has neither a <bndbox> of four sides"),
        ("<annotation><object><bndbox/></object></annotation>", "an object has no <name>"),
    ],
)
def test_faults_of_voc_files_are_named_with_the_file(tmp_path, text, message):
    root = copies.write("Pascal VOC", tmp_path / "data", {None: copies.drawings(3)})
    (root / "Annotations" / "image_01.xml").write_text(text)
    finding = codes(train_of(root))["unreadable-annotation"]
    assert finding.is_error
    assert "image_01.xml: " in str(finding)
    assert message in str(finding)


def test_faulty_rows_of_a_table_are_named_with_their_line(tmp_path):
    root = copies.write("CSV", tmp_path / "data", {"train": copies.drawings(2)})
    with open(root / "train.csv", "a") as file:
        file.write("image_00.png,1,2,3,,cup\nimage_00.png,1,2,3,4,\n,1,2,3,4,cup\n\0,1,2,3,4,cup\n")
    finding = codes(train_of(root))["unreadable-annotation"]
    assert finding.count == 4
    assert "train.csv:4: '' is no number, train.csv:5: no class, train.csv:6: no file" in str(finding)


def test_what_is_of_no_form_or_of_several_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match="there is no folder or file"):
        find_data_set(tmp_path / "nowhere")
    copies.draw(tmp_path / "images", copies.drawings(1))
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is of no known form; it holds images, table.csv; looked for") as error:
        find_data_set(tmp_path)
    assert all(f"\n  {form}: " in str(error.value) for form in FORMS)
    with pytest.raises(UserError, match="has the columns a, b; a CSV file needs a column with the file"):
        find_data_set(tmp_path / "table.csv")
    (tmp_path / "x.parquet").write_text("")
    with pytest.raises(UserError, match=r"give a folder, or a file .json, .yaml, .yml, .csv, .tsv"):
        find_data_set(tmp_path / "x.parquet")
    for form in ("YOLO", "CSV"):
        copies.write(form, tmp_path / "both", {"train": copies.drawings(2)})
    with pytest.raises(UserError, match="has several forms: YOLO and CSV; name one"):
        find_data_set(tmp_path / "both")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("annotations.xml", "<annotations><image><box/></image></annotations>"),  # of CVAT
        ("notes.json", '{"categories": [{"id": 0, "name": "a"}], "info": {}}'),  # of Label Studio's YOLO
        ("a.json", '[{"image": "a.png", "annotations": []}]'),  # of CreateML
        ("results.csv", "epoch,box_loss\n1,2\n"),  # of Ultralytics
        ("args.yaml", "task: detect\n"),
    ],
)
def test_files_of_other_programs_are_not_taken_for_labels(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="is of no known form"):
        find_data_set(tmp_path)
    root = copies.write("YOLO", tmp_path / "data", {"train": copies.drawings(2)})
    (root / name).write_text(text)
    assert find_data_set(root).form == "YOLO"


def test_parts_for_validation_and_test_are_not_trained_on_unless_named_themselves(tmp_path):
    root = copies.write("COCO", tmp_path / "data", {"val": copies.drawings(3), "test": copies.drawings(2, start=9)})
    with pytest.raises(UserError, match="has no part for training, only test, val; to train on it, name its file"):
        read_own_parts(root)
    train = copies.write("CSV", tmp_path / "csv", {None: copies.drawings(4, start=20)})
    assert len(read_own_parts(train, root).val.content["images"]) == 3
    path = root / "annotations" / "instances_test.json"
    assert len(read_own_parts(train, path).val.content["images"]) == 2
    assert len(train_of(path).content["images"]) == 2
    divided = copies.write("CSV", tmp_path / "two", {"train": copies.drawings(5), "test": copies.drawings(3, start=9)})
    own = read_own_parts(divided)
    assert {*own.train.file_names, *own.val.file_names} == {f"image_0{number}.png" for number in range(5)}


def test_validation_data_are_never_the_parts_train_and_test_of_what_was_named(tmp_path):
    train = copies.write("CSV", tmp_path / "csv", {None: copies.drawings(4)})
    parts = {"train": copies.drawings(3, start=9), "test": copies.drawings(2, start=20)}
    for form in FORMS:
        root = copies.write(form, tmp_path / form, parts)
        with pytest.raises(
            UserError, match=r"no part for validation, only (train, test|test, train); to evaluate on it"
        ):
            read_own_parts(train, root)
    only = copies.write("YOLO", tmp_path / "only", {"train": parts["train"]})
    with pytest.raises(
        UserError, match="only train; to evaluate on it, name its file or folder itself, or call it val"
    ):
        read_own_parts(train, only)
    assert len(read_own_parts(only, tmp_path / "YOLO" / "images" / "test").val.file_names) == 2


def test_images_in_both_parts_are_named(tmp_path):
    made = copies.drawings(5)
    root = copies.write("COCO", tmp_path / "data", {None: made})
    folder = root / "annotations"
    (folder / "instances.json").rename(folder / "instances_trainval.json")
    (folder / "instances_val.json").write_text(json.dumps(copies.coco_content(made[:2])))
    own = read_own_parts(root)
    finding = codes(own.val)["shared-image"]
    assert (finding.severity, finding.examples) == ("warning", ("image_00.png", "image_01.png"))
    assert "shared-image" in codes(read_own_parts(folder / "instances_trainval.json", root).val)
    other = copies.write("YOLO", tmp_path / "other", {"train": made, "val": made})  # other files with the same names
    assert "shared-image" not in codes(read_own_parts(other).val)


def test_several_coco_files_of_one_part_are_refused_unless_coco_names_one(tmp_path):
    root = copies.write("COCO", tmp_path / "data", {"train": copies.drawings(2)})
    path = root / "annotations" / "instances_train.json"
    shutil.copy(path, root / "annotations" / "captions_train.json")
    assert train_of(root).json_file == path
    shutil.copy(path, root / "annotations" / "instances_train_old.json")
    with pytest.raises(UserError, match="has several COCO files for one part"):
        find_data_set(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: []\ntrain: images/train\n", "has no usable 'names'"),
        ("names: {1: a}\ntrain: images/train\n", "has no usable 'names'"),
        ("names: [a]\nnc: 2\ntrain: images/train\n", "has nc 2 and 1 names"),
    ],
)
def test_faults_of_a_data_yaml_are_named(tmp_path, text, message):
    root = copies.write("YOLO", tmp_path / "data", {"train": copies.drawings(2)})
    (root / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        train_of(root)


def test_a_data_yaml_without_a_folder_that_exists_is_refused(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: nowhere\n")
    with pytest.raises(UserError, match=r"names no folder that exists \(train: nowhere\)"):
        find_data_set(tmp_path / "data.yaml")


def test_messages_about_data_of_another_form_name_the_files_and_not_made_numbers(tmp_path):
    drawing = copies.Drawing("image_01", 64, 48, [copies.Shape("cup", 5, 5, 5, 20)])
    root = copies.write("CSV", tmp_path / "data", {"train": [*copies.drawings(2, start=4), drawing]})
    (path,) = write_parts([("train", train_of(root))], tmp_path / "out")

    (finding,) = [f for f in check_annotations(read_coco_file(path)) if f.code == "degenerate-box"]
    assert finding.examples == ("annotation 1 in image_01.png",)


def test_annotations_of_unknown_images_stay_in_a_part_for_the_checks(tmp_path):
    root = copies.write("COCO", tmp_path / "data", {None: copies.drawings(4)})
    path = root / "annotations" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"] += [
        content["annotations"][0] | {"id": 90 + n, "image_id": image} for n, image in enumerate((77, [1]))
    ]
    path.write_text(json.dumps(content))
    own = read_own_parts(root, share=0.5)

    assert [item["id"] for item in own.train.content["annotations"]][-2:] == [90, 91]


LABEL_FILES = {
    "COCO": "annotations/instances.json",
    "YOLO": "labels/image_00.txt",
    "Pascal VOC": "Annotations/image_00.xml",
    "CSV": "boxes.csv",
}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_and_nothing_else(data, tmp_path_factory):
    form = data.draw(st.sampled_from(FORMS))
    root = tmp_path_factory.getbasetemp() / f"damaged {form}"
    if not root.exists():
        copies.write(form, root, {None: copies.drawings(3)})
    names = [LABEL_FILES[form], *(["data.yaml"] if form == "YOLO" else [])]
    path = root / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    piece = data.draw(
        st.sampled_from([b"", b"\0", b"\xff", b"nan", b"1e999", b"-3", b'"', b"<a>", b"[", b"{}", b"x" * 300, b"0 1\n"])
    )
    path.write_bytes(whole[:start] + piece + whole[start + data.draw(st.integers(0, 40)) :])
    try:
        with suppress(UserError):
            own = read_own_parts(root, share=0.4)
            findings = check_annotations(coco_file_of(root, own.train.to_coco(), boxes_from_masks=True))
            assert all(str(finding) for finding in [*findings, *own.findings])
    finally:
        path.write_bytes(whole)


def test_lists_that_are_no_text_are_refused_with_their_name(tmp_path):
    root = copies.write("Pascal VOC", tmp_path / "data", {"train": copies.drawings(2)})
    path = root / "ImageSets" / "Main" / "train.txt"
    path.write_bytes(b"image_00\n\xff")
    with pytest.raises(UserError, match=r"train.txt is no text in UTF-8 \(byte 9\)"):
        train_of(root)
    path.write_text("image_00\nimage_77\n")
    with pytest.raises(UserError, match=r"train.txt names image_77, which have no .xml file"):
        train_of(root)
