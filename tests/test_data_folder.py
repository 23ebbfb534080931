"""A folder of images, with a folder for each class."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from batchnorm.data import load


def image(path, value, size=(4, 6), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(np.full(shape, value, dtype=np.uint8), mode=None).save(path)


@pytest.fixture
def cats(tmp_path):
    for i in range(10):
        image(tmp_path / "pets" / "cat" / f"{i}.png", i)
        image(tmp_path / "pets" / "dog" / "more" / f"{i}.PNG", 100 + i)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "pets" / ".cache").mkdir()
    return tmp_path / "pets"


def test_classes_are_numbered_by_name_and_split_as_ever(cats):
    data = load(str(cats))
    assert data.shape == (1, 6, 4)
    assert data.classes == 2
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 4]
    values = (data.train.x[:, 0, 0, 0] * 255).round()
    assert torch.equal(data.train.y, (values >= 100).long())
    assert load(str(cats)).fingerprint == data.fingerprint
    image(cats / "cat" / "3.png", 200)
    assert load(str(cats)).fingerprint != data.fingerprint, "other pixels are other data"


def test_three_folders_are_the_three_sets_and_one_color_makes_all_colored(tmp_path):
    for part, count in (("train", 3), ("validation", 2), ("test", 1)):
        for i in range(count):
            image(tmp_path / part / "a" / f"{i}.png", 255)
            image(tmp_path / part / "b" / f"{i}.png", 51, mode="RGB")
    data = load(str(tmp_path))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 4, 2]
    assert data.shape == (3, 6, 4)
    assert data.test.x.flatten(1).mean(1).tolist() == pytest.approx([1.0, 0.2])


def test_what_is_no_such_folder_says_what_is_and_where(cats, tmp_path):
    def refused(path, said):
        with pytest.raises(ValueError, match=re.escape(said)) as error:
            load(str(path))
        assert str(path) in str(error.value)

    refused(cats / "cat", "has images of 0 classes (none); expected a folder with a folder of")
    image(tmp_path / "one" / "cat" / "1.png", 1)
    refused(tmp_path / "one", "has images of 1 classes (cat); expected")
    torn = cats / "dog" / "torn.png"
    torn.write_bytes((cats / "cat" / "1.png").read_bytes()[:40])
    refused(cats, f"image {str(torn)!r} cannot be read: ")
    torn.write_bytes(b"nothing like an image")
    refused(cats, f"image {str(torn)!r} cannot be read: cannot identify image file")
    torn.unlink()
    image(torn, 1, size=(5, 5))
    refused(cats, f"image {str(torn)!r} is 5x5 pixels, ")
    with pytest.raises(ValueError, match="a folder of images by class; or module:function"):
        load(str(cats / "nowhere"))
