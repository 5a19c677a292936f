from pathlib import Path

import pytest
from coco_folder import write

from codetr_lab.data.catalog import open_dataset
from codetr_lab.data.coco import CocoFolder
from codetr_lab.data.dataset import DataError
from codetr_lab.data.shapes import DIFFICULTIES, Shapes
from codetr_lab.models.config import ConfigError


def test_generated_sets() -> None:
    normal = open_dataset("shapes", "val")
    assert isinstance(normal, Shapes)
    assert (normal.split, normal.difficulty) == ("val", DIFFICULTIES["normal"])
    hard = open_dataset("shapes:hard", "train")
    assert isinstance(hard, Shapes)
    assert hard.difficulty == DIFFICULTIES["hard"]


def test_folders(tmp_path: Path) -> None:
    write(tmp_path)
    for spec in (tmp_path, str(tmp_path), tmp_path / "train.json"):
        data = open_dataset(spec, "train")
        assert isinstance(data, CocoFolder)
        assert len(data) == 3


def test_invalid_annotations_can_be_dropped(tmp_path: Path) -> None:
    path = write(tmp_path) / "train.json"
    path.write_text(path.read_text().replace("[2, 3, 10, 10]", "[2, 3, 0, 10]"))
    with pytest.raises(DataError, match="annotation 1: box has width 0"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path, "train", drop_invalid=True).target(0)["boxes"]) == 1


def test_the_nearest_name_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'shpaes'; did you mean 'shapes'\?"):
        open_dataset("shpaes", "train")
    with pytest.raises(ConfigError, match="did you mean 'shapes:hard'"):
        open_dataset("shapes:hrd", "train")
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        open_dataset("shapes", "trian")
    write(tmp_path / "blood_cells")
    with pytest.raises(DataError, match=r"no such file or folder; did you mean .*blood_cells\?"):
        open_dataset(tmp_path / "blod_cells", "train")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'blood_cells'"):
        open_dataset("blod_cells", "train")
    with pytest.raises(DataError, match=r"zzz\.json: no such file or folder; generated ones are shapes, "):
        open_dataset("zzz.json", "train")
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(tmp_path / "no" / "where", "train")
