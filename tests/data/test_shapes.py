import numpy as np
import pytest
import torch

from codetr_lab.data.dataset import DataError, DetectionDataset
from codetr_lab.data.drawing import color_distance
from codetr_lab.data.painting import OUTLINES, Painter
from codetr_lab.data.shapes import DIFFICULTIES, Shapes
from codetr_lab.models.config import ConfigError


def test_it_is_a_data_set() -> None:
    shapes = Shapes()
    assert isinstance(shapes, DetectionDataset)
    assert (len(shapes), len(Shapes("val"))) == (4000, 400)
    assert shapes.classes == ("circle", "square", "triangle", "star", "cross", "ring")
    assert len(shapes.category_ids) == len(shapes.classes)
    assert shapes.name == "shapes"
    assert Shapes(difficulty="hard").name == "shapes:hard"


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_order_of_access_does_not_matter(difficulty: str) -> None:
    forwards, backwards = Shapes(images=5, difficulty=difficulty), Shapes(images=5, difficulty=difficulty)
    images = [forwards.image(index) for index in range(5)]
    for index in reversed(range(5)):
        target, other = backwards.target(index), forwards.target(index)
        np.testing.assert_array_equal(backwards.image(index), images[index])
        assert all(torch.equal(target[key], other[key]) for key in other)


def test_seed_split_index_difficulty_and_size_all_matter() -> None:
    first = Shapes().image(0)
    others = [Shapes(seed=1), Shapes("val"), Shapes(difficulty="easy")]
    assert all((other.image(0) != first).any() for other in others)
    assert (Shapes().image(1) != first).any()
    assert Shapes(size=160).image(0).shape == (160, 160, 3)


def test_what_is_handed_out_is_the_callers_own() -> None:
    shapes = Shapes(images=1)
    before = shapes.image(0)
    shapes.image(0)[:] = 0
    boxes = shapes.target(0)["boxes"].clone()
    shapes.target(0)["boxes"].zero_()
    np.testing.assert_array_equal(shapes.image(0), before)
    torch.testing.assert_close(shapes.target(0)["boxes"], boxes)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_boxes_masks_and_areas_agree(difficulty: str) -> None:
    shapes = Shapes("val", images=40, difficulty=difficulty)
    for index in range(40):
        target = shapes.target(index)
        assert 1 <= len(target["labels"]) <= 15
        assert int(target["image_id"]) == index
        assert not target["iscrowd"].any()
        assert target["masks"].sum(0).max() <= 1
        torch.testing.assert_close(target["masks"].sum((1, 2)).float(), target["area"])
        for mask, box in zip(target["masks"], target["boxes"].tolist(), strict=True):
            rows, columns = torch.nonzero(mask.any(1))[:, 0], torch.nonzero(mask.any(0))[:, 0]
            assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert "masks" not in shapes.target(0, masks=False)


def test_the_normal_distribution_is_the_documented_one() -> None:
    shapes = Shapes(images=300)
    targets = [shapes.target(index, masks=False) for index in range(300)]
    counts = np.array([len(target["labels"]) for target in targets])
    area = torch.cat([target["area"] for target in targets]).numpy()
    labels = torch.cat([target["labels"] for target in targets])
    assert 4.7 <= counts.mean() <= 5.6
    assert ((counts >= 2) & (counts <= 8)).mean() >= 0.85
    assert counts.min() == 1
    assert counts.max() >= 9
    assert 0.65 <= (area < 32**2).mean() <= 0.85
    assert (area > 96**2).sum() >= 3
    assert torch.bincount(labels, minlength=6).min() >= 0.12 * len(labels)


def test_difficulties_are_ordered() -> None:
    sets = [Shapes(images=60, difficulty=name) for name in ("easy", "normal", "hard")]
    counts = [np.mean([len(shapes.target(i, masks=False)["labels"]) for i in range(60)]) for shapes in sets]
    assert counts == sorted(counts)
    assert DIFFICULTIES["easy"].clutter == 0


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_object_stays_visible(difficulty: str) -> None:
    rule = DIFFICULTIES[difficulty]
    for seed in range(40):
        painter = Painter(np.random.default_rng(seed), 128, rule)
        scene = painter.paint()
        assert (scene.area >= rule.visible * np.array(painter.full_area)).all()


def test_objects_differ_from_their_surroundings() -> None:
    shapes = Shapes(images=30, difficulty="easy")
    distances = []
    for index in range(30):
        image, masks = shapes.image(index), shapes.target(index)["masks"].numpy()
        ground = tuple(image[~masks.any(0)].mean(0).tolist())
        distances += [color_distance(tuple(image[mask].mean(0).tolist()), ground) for mask in masks]
    assert np.median(distances) >= 150


def test_outlines_fit_their_radius_and_are_different() -> None:
    axis = np.linspace(-1.2, 1.2, 241, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    inside = {name: outline(x, y) <= 0 for name, outline in OUTLINES.items()}
    for name, mask in inside.items():
        assert np.hypot(x, y)[mask].max() <= 1.14, name
        assert 0.3 <= mask.mean() * 2.4**2 / np.pi <= 1, name
        overlaps = [(mask & other).sum() / (mask | other).sum() for key, other in inside.items() if key != name]
        assert max(overlaps) < 0.85, name
    assert not inside["ring"][120, 120]


def test_coco_dictionary() -> None:
    from pycocotools import mask as coco_mask

    shapes = Shapes("val", images=6)
    coco = shapes.to_coco()
    assert [image["id"] for image in coco["images"]] == list(range(6))
    assert [category["name"] for category in coco["categories"]] == list(shapes.classes)
    assert [annotation["id"] for annotation in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    masks = torch.cat([shapes.target(index)["masks"] for index in range(6)]).numpy()
    for annotation, mask in zip(coco["annotations"], masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]).astype(bool), mask)
        assert annotation["area"] == mask.sum()
        x, y, w, h = annotation["bbox"]
        assert mask[int(y) : int(y + h), int(x) : int(x + w)].sum() == mask.sum()


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_such_image(index: int) -> None:
    with pytest.raises(IndexError, match=r"shapes has images 0\.\.2"):
        Shapes(images=3).image(index)


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        Shapes("trian")
    with pytest.raises(ConfigError, match="did you mean 'hard'"):
        Shapes(difficulty="harder")
    for wrong in ({"images": 0}, {"size": 8}, {"seed": -1}):
        with pytest.raises(DataError):
            Shapes(**wrong)
