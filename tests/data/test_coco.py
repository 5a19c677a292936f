import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import content, write
from PIL import Image

from codetr_lab.data.coco import CocoFolder, check
from codetr_lab.data.dataset import DataError, DetectionDataset
from codetr_lab.images import ImageError


def test_a_folder_is_a_data_set(tmp_path: Path) -> None:
    data = CocoFolder(write(tmp_path / "cars"))
    assert isinstance(data, DetectionDataset)
    assert (data.name, len(data)) == ("cars", 3)
    assert data.classes == ("car", "train", "toothbrush")
    assert data.category_ids == (3, 7, 90)
    assert [data.file_name(index) for index in range(3)] == ["a.png", "b.png", "c.png"]
    assert data.image(1).shape == (50, 20, 3)
    assert (data.image(1) == 20).all()


def test_targets(tmp_path: Path) -> None:
    data = CocoFolder(write(tmp_path))
    target = data.target(0)
    assert target["boxes"].tolist() == [[2, 3, 12, 13], [30, 20, 40, 30]]  # 40.4 is clipped
    assert target["labels"].tolist() == [1, 0]
    assert target["area"].tolist() == [100, 104]  # where the file has none, the box's
    assert int(target["image_id"]) == 10
    assert target["masks"].shape == (2, 30, 40)
    assert target["masks"][0, 3:13, 2:12].all()
    assert target["masks"][0].sum() == 100
    crowd = data.target(1)
    assert crowd["iscrowd"].tolist() == [False, True]
    assert crowd["masks"][1].sum() == 50
    empty = data.target(2)
    assert {key: tuple(value.shape) for key, value in empty.items()} == {
        "boxes": (0, 4), "labels": (0,), "iscrowd": (0,), "area": (0,), "image_id": (), "masks": (0, 16, 16),
    }  # fmt: skip
    assert empty["boxes"].dtype == torch.float32
    assert empty["labels"].dtype == torch.int64
    assert "masks" not in data.target(0, masks=False)


def test_masks_are_left_out_where_one_object_has_none(tmp_path: Path) -> None:
    coco = content()
    del coco["annotations"][0]["segmentation"]
    data = CocoFolder(write(tmp_path, coco))
    assert "masks" not in data.target(0)
    assert "masks" in data.target(1)


def test_compressed_masks(tmp_path: Path) -> None:
    from codetr_lab.data.dataset import encode_mask

    mask = np.zeros((30, 40), bool)
    mask[4:9, 5:7] = True
    coco = content()
    coco["annotations"][0]["segmentation"] = encode_mask(mask)
    np.testing.assert_array_equal(CocoFolder(write(tmp_path, coco)).target(0)["masks"][0].numpy(), mask)


def test_ground_truth_is_the_files(tmp_path: Path) -> None:
    truth = CocoFolder(write(tmp_path)).to_coco()
    assert truth["images"] == content()["images"]
    assert [item["bbox"] for item in truth["annotations"]] == [item["bbox"] for item in content()["annotations"]]
    assert [item["iscrowd"] for item in truth["annotations"]] == [0, 0, 0, 1]
    assert [item["id"] for item in truth["annotations"]] == [1, 2, 5, 6]


def test_annotation_zero_is_renumbered_for_evaluation(tmp_path: Path) -> None:
    coco = content()
    coco["annotations"][0]["id"] = 0
    assert [item["id"] for item in CocoFolder(write(tmp_path, coco)).to_coco()["annotations"]] == [1, 3, 6, 7]


@pytest.mark.parametrize(
    ("annotations", "images", "split"),
    [
        ("train.json", "images", "train"),
        ("train.json", ".", "train"),
        ("train.json", "train", "train"),
        ("val.json", "images/val", "val"),
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "images/val2017", "val"),
        ("annotations/val.json", "images", "val"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("val/annotations.json", "val/images", "val"),
        ("annotations.json", "images", "train"),
        ("test.json", "images", "test"),
    ],
)
def test_the_usual_layouts(tmp_path: Path, annotations: str, images: str, split: str) -> None:
    write(tmp_path, annotations=annotations, images=images)
    data = CocoFolder(tmp_path, split=split)
    assert data.annotations_path == tmp_path / annotations
    assert (data.image(0) == 10).all()
    assert len(CocoFolder(tmp_path / annotations)) == 3


def test_splits_are_not_mixed_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a", annotations="train.json")
    with pytest.raises(DataError, match=r"no annotations of split 'val' .*it holds train\.json: give that file"):
        CocoFolder(tmp_path / "a", split="val")
    write(tmp_path / "b", annotations="annotations.json")
    with caplog.at_level(logging.WARNING):
        CocoFolder(tmp_path / "b", split="val")
    assert "has no splits; all of it is used as val" in caplog.text


def test_images_in_another_place(tmp_path: Path) -> None:
    write(tmp_path, images="elsewhere/deep")
    with pytest.raises(DataError, match=r"image files such as a\.png are missing; looked in .*; give images_dir"):
        CocoFolder(tmp_path)
    assert (CocoFolder(tmp_path, tmp_path / "elsewhere/deep").image(2) == 30).all()
    with pytest.raises(DataError, match="no such image folder"):
        CocoFolder(tmp_path, tmp_path / "nowhere")


def test_images_in_subfolders(tmp_path: Path) -> None:
    coco = content()
    for image in coco["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    assert (CocoFolder(write(tmp_path, coco)).image(0) == 10).all()


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set `annotations.0.bbox` and the like."""

    def apply(coco: dict[str, Any]) -> None:
        place: Any = coco
        *parents, last = path.split(".")
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value

    return apply


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (change("annotations.1.bbox", [1, 1, -3, 4]), "annotation 2: box has width -3"),
        (change("annotations.1.bbox", [1, 1, 3, 0]), "annotation 2: box has height 0"),
        (change("annotations.1.bbox", [1, 1, 3]), "annotation 2: box must be four numbers"),
        (change("annotations.1.bbox", [1, 1, float("nan"), 4]), "annotation 2: box must be four numbers"),
        (change("annotations.1.bbox", [50, 1, 3, 4]), "lies outside its image of 40 x 30 pixels"),
        (change("annotations.1.bbox", None), "annotation 2: has no 'bbox'"),
        (change("annotations.1.category_id", 4), "annotation 2: there is no category 4"),
        (change("annotations.1.category_id", [4]), r"annotation 2: there is no category \[4\]"),
        (change("annotations.1.image_id", 11), "annotation 2: there is no image 11"),
        (change("annotations.1.image_id", "10"), "annotation 2: there is no image '10'"),
        (change("annotations.1.id", 1), "annotation 1: this id occurs twice"),
        (change("annotations.1.id", None), "annotation number 2: has no 'id'"),
        (change("annotations.1.id", "x"), "annotation x: its id must be a whole number"),
        (change("annotations.1.area", "big"), "annotation 2: area must be a number"),
        (change("annotations.1.segmentation", [[1, 2, 3]]), "annotation 2: segmentation has a polygon"),
        (change("annotations.1.segmentation", [["a"] * 6]), "annotation 2: segmentation has a polygon"),
        (change("annotations.1.segmentation", "mask"), "annotation 2: segmentation is neither"),
        (change("annotations.1.segmentation", {"size": [30, 40]}), "run-length encoding without 'counts'"),
        (
            change("annotations.1.segmentation", {"size": [3, 4], "counts": [12]}),
            r"size \[3, 4\], its image \[30, 40\]",
        ),
    ],
)
def test_invalid_annotations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mistake: Callable[[dict[str, Any]], None], words: str
) -> None:
    coco = content()
    mistake(coco)
    write(tmp_path, coco)
    with pytest.raises(DataError, match=words) as error:
        CocoFolder(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'train.json'}: ")
    assert str(error.value).endswith("; fix or pass --drop-invalid")
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        data = CocoFolder(tmp_path, drop_invalid=True)
    assert "1 invalid annotations are left out, the first: annotation" in caplog.text
    assert len(data.target(0)["boxes"]) == 1
    assert len(data.to_coco()["annotations"]) == 3


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (change("images.1.id", 10), "image 10: this id occurs twice"),
        (change("images.1.width", None), r"image 20 \(b\.png\): width must be a number of pixels, got None"),
        (change("images.1.height", 2.5), "height must be a number of pixels, got 2.5"),
        (change("images.1.file_name", 7), "image 20: its file_name must be text, got 7"),
        (change("categories.1.id", 90), "category 90: this id occurs twice"),
        (change("categories.1.name", None), "category 3: has no 'name'"),
        (change("images.1.file_name", "z.png"), "image file z.png is missing; put it into"),
        (change("images", []), "holds no images"),
        (change("annotations", []), "holds no valid annotations"),
        (change("images", {}), "'images' must be a list of objects"),
        (change("categories", [1]), "'categories' must be a list of objects"),
    ],
)
def test_invalid_files(tmp_path: Path, mistake: Callable[[dict[str, Any]], None], words: str) -> None:
    coco = content()
    mistake(coco)
    write(tmp_path, coco)
    with pytest.raises(DataError, match=words):
        CocoFolder(tmp_path, drop_invalid=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [\n oops', r"is not JSON \(line 2"),
        ("[]", "is a list, as COCO results are"),
        ("3", "is JSON but no COCO dictionary"),
        ('{"images": []}', "has no 'annotations'"),
    ],
)
def test_no_coco_file_at_all(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json: ") as error:
        CocoFolder(tmp_path / "a.json")
    assert error.match(words)


def test_other_paths(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not JSON but some binary file"):
        CocoFolder(tmp_path / "a.json")
    with pytest.raises(DataError, match="no such file or folder"):
        CocoFolder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"it holds no \.json file"):
        CocoFolder(tmp_path / "empty")


def test_ten_problems_are_named_at_once(tmp_path: Path) -> None:
    coco = content()
    coco["annotations"] += [{"id": 100 + n, "image_id": 10, "category_id": 3, "bbox": [0, 0, 0, 1]} for n in range(13)]
    with pytest.raises(DataError) as error:
        CocoFolder(write(tmp_path, coco))
    assert str(error.value).count("box has width 0") == 10
    assert "; and 3 more;" in str(error.value)


def test_boxes_that_stick_out_are_clipped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coco = content()
    coco["annotations"][0]["bbox"] = [-5, 3, 10, 10]
    coco["annotations"][2]["bbox"] = [1, 1, 5, 60]
    with caplog.at_level(logging.WARNING):
        data = CocoFolder(write(tmp_path, coco))
    assert caplog.text.count("2 boxes stick out of their images and are clipped") == 1
    assert data.target(0)["boxes"][0].tolist() == [0, 3, 5, 13]
    assert data.to_coco()["annotations"][0]["bbox"] == [-5, 3, 10, 10]


def test_an_image_of_another_size_and_a_damaged_one(tmp_path: Path) -> None:
    data = CocoFolder(write(tmp_path))
    Image.new("RGB", (30, 40)).save(tmp_path / "images/a.png")
    (tmp_path / "images/b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"is 30 x 40 pixels, but train\.json says 40 x 30"):
        data.image(0)
    with pytest.raises(ImageError, match=r"b\.png: the file is empty"):
        data.image(1)
    with pytest.raises(IndexError, match=r"images 0\.\.2"):
        data.image(3)
    report = check(tmp_path)
    assert not report.ok
    assert [problem.split(": ")[0].split("/")[-1] for problem in report.problems] == ["a.png", "b.png"]


def test_check_reports_what_is_there(tmp_path: Path) -> None:
    report = check(write(tmp_path))
    assert report.ok
    assert (report.images, report.empty_images, report.objects, report.crowds) == (3, 1, 3, 1)
    assert (report.small, report.medium, report.large) == (3, 0, 0)
    assert report.per_class == {"car (3)": 1, "train (7)": 1, "toothbrush (90)": 1}
    assert "usable as it is" in str(report)
    assert str(tmp_path / "images") in str(report)


def test_check_reports_all_problems(tmp_path: Path) -> None:
    coco = content()
    coco["annotations"] += [{"id": 100 + n, "image_id": 10, "category_id": 3, "bbox": [0, 0, 0, 1]} for n in range(30)]
    coco["annotations"][0]["bbox"] = [-5, 3, 10, 10]
    report = check(write(tmp_path, coco))
    assert len(report.problems) == 30
    assert "... and 10 more problems" in str(report)
    assert "1 boxes stick out" in str(report)
    (tmp_path / "b.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert check(tmp_path / "b.json").problems == ("there are no images",)
    (tmp_path / "images").rename(tmp_path / "gone")
    report = check(tmp_path)
    assert report.images_dir is None
    assert "are missing" in report.problems[-1]
