import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folder import write

from codetr_lab.data.coco import CocoFolder, check
from codetr_lab.data.dataset import DataError, export
from codetr_lab.data.shapes import Shapes


def test_shapes_survive_the_way_to_disk_and_back(tmp_path: Path) -> None:
    shapes = Shapes("val", images=5, difficulty="hard")
    folder = export(shapes, tmp_path / "new" / "set")
    data = CocoFolder(folder)
    assert (data.classes, data.category_ids, len(data)) == (shapes.classes, shapes.category_ids, 5)
    for index in range(5):
        np.testing.assert_array_equal(data.image(index), shapes.image(index))
        target, original = data.target(index), shapes.target(index)
        assert target.keys() == original.keys()
        assert all(torch.equal(target[key], original[key]) for key in original)
    assert data.to_coco()["annotations"] == shapes.to_coco()["annotations"]
    assert check(folder).ok
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(Shapes(images=3), tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 4
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_a_folder_without_masks_and_with_crowds(tmp_path: Path) -> None:
    source = write(tmp_path / "source") / "train.json"
    coco = json.loads(source.read_text())
    for annotation in coco["annotations"]:
        del annotation["segmentation"]
    source.write_text(json.dumps(coco))
    data = CocoFolder(export(CocoFolder(source), tmp_path / "copy"))
    assert [data.target(index)["iscrowd"].tolist() for index in range(3)] == [[False, False], [False, True], []]
    assert "masks" not in data.target(0)


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="full: exists already; choose another folder or delete it first"):
        export(Shapes(images=2), full)
    empty = tmp_path / "empty"
    empty.mkdir()
    export(Shapes(images=1), empty)
    assert (empty / "annotations.json").is_file()
    shapes = Shapes(images=2)

    def interrupted(index: int) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(shapes, tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
