"""Folders of images, and how images become a model's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bnn_deploy.data.pictures import ArrayPictures, center_crop, open_folder, png
from bnn_deploy.errors import InputError
from bnn_deploy.preprocessing import Preprocessing, read_preprocessing
from bnn_deploy.runtime.inputs import InputSpec, load_data

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def picture(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    """Noise, in which each pixel shows where it is from: uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def spec(*shape: int | str, dtype: str = "float32") -> list[InputSpec]:
    return [InputSpec("x", dtype, ("N", *shape))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, with what is no image, an image in a sub-folder, and names whose order is by their bytes."""
    root = tmp_path / "images"
    for seed, name in enumerate(("dog/2.png", "dog/10.PNG", "cat/sub/1.png", "cat/0.bmp", "Zebra/a.jpeg")):
        save(root / name, picture(seed))
    (root / "dog" / "notes.txt").write_text("no image")
    (root / "README").write_text("no class")
    return root


def test_the_rules_of_image_folder(folder: Path) -> None:
    """As torchvision.datasets.ImageFolder(folder).samples lists them: sorted, capitals first, 10 before 2."""
    files, labels, names = open_folder(folder)
    assert names == ("Zebra", "cat", "dog")
    assert [files.name(i) for i in range(len(files))] == [
        "Zebra/a.jpeg",
        "cat/0.bmp",
        "cat/sub/1.png",
        "dog/10.PNG",
        "dog/2.png",
    ]
    assert labels is not None and labels.tolist() == [0, 1, 1, 2, 2]


def test_a_folder_becomes_the_input(folder: Path) -> None:
    found = load_data(folder, None, None, spec(3, 8, 8), preprocessing=IMAGENET)
    assert (len(found), found.class_names, found.file(4)) == (5, ("Zebra", "cat", "dog"), "dog/2.png")
    mean, std = (np.float32(values).reshape(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    wanted = (picture(0).transpose(2, 0, 1).astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_array_equal(found.part(4, 5)["x"][0], wanted)
    assert not np.array_equal(found.part(3, 4)["x"][0], wanted)


def test_images_without_classes(tmp_path: Path) -> None:
    save(tmp_path / "b.png", picture(1))
    save(tmp_path / "a.png", picture(0))
    found = load_data(tmp_path, None, None, spec(3, 8, 8, dtype="uint8"))
    assert found.labels is None and [found.file(i) for i in range(2)] == ["a.png", "b.png"]
    np.testing.assert_array_equal(found.part(0, 2)["x"], np.stack([picture(0), picture(1)]).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((3, 8, 8), (0, 3, 1, 2)), ((8, 8, 3), (0, 1, 2, 3)), ((192,), (0, 3, 1, 2)), (("C", 8, 8), None)],
)
def test_layouts(shape: tuple[int | str, ...], layout: tuple[int, ...] | None, folder: Path, tmp_path: Path) -> None:
    """Channels first and last, and flat, from a folder and from an array."""
    np.save(tmp_path / "x.npy", np.stack([picture(4), picture(3)]))
    for path, image in ((folder, picture(3)), (tmp_path / "x.npy", picture(4))):
        if layout is None:
            with pytest.raises(InputError, match=r"holds images, and the model's input is \['N', 'C', 8, 8\]"):
                load_data(path, None, None, spec(*shape), preprocessing=IMAGENET)
            continue
        found = load_data(path, None, None, spec(*shape), preprocessing=Preprocessing(mean=(0,), std=(1,)))
        index = next(i for i in range(len(found)) if path != folder or found.file(i).endswith("0.bmp"))
        wanted = image[np.newaxis].transpose(layout).reshape(1, *shape).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(found.part(index, index + 1)["x"], wanted)


def test_grey(folder: Path) -> None:
    """By way of RGB, as ImageFolder and Grayscale; [N, H, W] has no channel, and of a flat input the size tells."""
    wanted = np.asarray(Image.fromarray(picture(3)).convert("L"), np.float32) / np.float32(255)
    for shape in ((1, 8, 8), (8, 8), (64,)):
        found = load_data(folder, None, None, spec(*shape), preprocessing=Preprocessing(mean=(0,), std=(1,)))
        np.testing.assert_array_equal(found.part(1, 2)["x"], wanted.reshape(1, *shape))


def test_grey_of_other_colours(tmp_path: Path) -> None:
    """Of YCbCr, Pillow's own way to grey rounds otherwise than that by RGB."""
    coloured = Image.fromarray(picture(3)).convert("YCbCr")
    coloured.save(tmp_path / "0.tif")
    found = load_data(tmp_path, None, None, spec(1, 8, 8), preprocessing=Preprocessing(mean=(0,), std=(1,)))
    ways = coloured.convert("RGB").convert("L"), coloured.convert("L")
    wanted, other = (np.asarray(image, np.float32) / 255 for image in ways)
    np.testing.assert_allclose(found.part(0, 1)["x"][0, 0], wanted, atol=1e-6)
    assert not np.allclose(wanted, other, atol=1e-6)


SIZES = {
    # size, crop, height and width: the size after Resize, and the first row and column of CenterCrop, as torchvision
    # documents them, by hand: functional.resize cuts the longer side off, functional.center_crop rounds to even.
    (256, 224, 300, 500): ((256, 426), (16, 101)),
    (256, 224, 500, 333): ((384, 256), (80, 16)),
    (224, 224, 225, 225): ((224, 224), (0, 0)),
    ((30, 40), 21, 100, 70): ((30, 40), (4, 10)),
    ((31, 43), (28, 28), 31, 43): ((31, 43), (2, 8)),
    (None, 5, 8, 8): ((8, 8), (2, 2)),
}


def test_one_image(folder: Path) -> None:
    found = load_data(folder / "dog" / "10.PNG", None, None, spec(8, 8, 3, dtype="uint8"))
    assert (found.part(0, None)["x"] == picture(1)[None]).all() and found.labels is None
    assert not (found.part(0, None)["x"] == picture(0)[None]).all()


def test_bytes_of_another_layout_are_moved() -> None:
    last = np.stack([picture(0), picture(1)])
    first = np.moveaxis(last, -1, 1)
    for given in (last, first):
        for shape, wanted in (((8, 8, 3), last), ((3, 8, 8), first)):
            assert (load_data(given, None, None, spec(*shape, dtype="uint8")).part(0, None)["x"] == wanted).all()


@pytest.mark.parametrize("case", SIZES)
def test_sizes(case: tuple) -> None:
    size, crop, height, width = case
    resized, (top, left) = SIZES[case]
    steps = Preprocessing(size, crop)
    assert steps.resized(height, width) == resized
    image = picture(0, *resized)
    side = crop if isinstance(crop, tuple) else (crop, crop)
    np.testing.assert_array_equal(center_crop(image, crop), image[top : top + side[0], left : left + side[1]])


def test_a_crop_larger_than_the_image() -> None:
    """torchvision pads (wanted - have) // 2 rows above, and one more below if that is odd; likewise columns."""
    image = picture(0, 5, 12)
    wanted = np.zeros((8, 7, 3), np.uint8)
    wanted[1:6] = image[:, 2:9]  # of 5 columns to spare, round(2.5) = 2 are left of it
    np.testing.assert_array_equal(center_crop(image, (8, 7)), wanted)


def test_resize_is_pillows_bilinear_filter(tmp_path: Path) -> None:
    """With antialiasing: torchvision leaves the resizing of Pillow's images to Pillow."""
    image = picture(0, 50, 80)
    save(tmp_path / "a.png", image)
    steps = Preprocessing(size=20, crop=16, mean=(0,), std=(1,))
    found = load_data(tmp_path, None, None, spec(3, 16, 16), preprocessing=steps).part(0, 1)["x"][0]

    def resized(method: Image.Resampling) -> np.ndarray:
        small = np.asarray(Image.fromarray(image).resize((32, 20), method))[2:18, 8:24]
        return small.transpose(2, 0, 1).astype(np.float32) / np.float32(255)

    np.testing.assert_array_equal(found, resized(Image.Resampling.BILINEAR))
    assert not np.array_equal(found, resized(Image.Resampling.BICUBIC))
    # An independent computation: the triangle as wide as the scale, each direction rounded to a byte.
    weights = triangle(80, 32)
    rows = np.floor(np.einsum("ow,hwc->hoc", weights, image.astype(float)) + 0.5)
    small = np.floor(np.einsum("oh,hwc->owc", triangle(50, 20), rows) + 0.5)[2:18, 8:24]
    assert np.abs(found * 255 - small.transpose(2, 0, 1)).max() <= 1.001  # Pillow's weights have 22 bits
    assert np.abs(found * 255 - small.transpose(2, 0, 1)).mean() < 0.01


def triangle(have: int, want: int) -> np.ndarray:
    """The weights [want, have] of an antialiased bilinear filter."""
    scale = have / want
    centre = (np.arange(want) + 0.5) * scale
    distance = np.abs(np.arange(have) + 0.5 - centre[:, np.newaxis]) / max(scale, 1)
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(axis=1, keepdims=True)


def test_a_model_of_bytes_gets_bytes(folder: Path) -> None:
    wanted = spec(8, 8, 3, dtype="uint8")
    np.testing.assert_array_equal(load_data(folder, None, None, wanted).part(1, 2)["x"][0], picture(3))
    with pytest.raises(InputError, match="the model takes bytes, and normalises them itself: leave out mean and std"):
        load_data(folder, None, None, wanted, preprocessing=IMAGENET)


def test_what_the_model_records(folder: Path) -> None:
    """It is the preprocessing where none is given; and a part that is given comes first."""
    recorded = Preprocessing(size=(8, 8), crop=4, mean=(0.5,), std=(0.25,))
    assert read_preprocessing(recorded.metadata()) == recorded
    item = InputSpec("x", "float32", ("N", 3, 4, 4), (), recorded)
    found = load_data(folder, None, None, [item]).part(1, 2)["x"][0]
    wanted = (picture(3)[2:6, 2:6].transpose(2, 0, 1).astype(np.float32) / np.float32(255) - 0.5) / 0.25
    np.testing.assert_array_equal(found, wanted.astype(np.float32))
    other = load_data(folder, None, None, [item], preprocessing=Preprocessing(std=(0.5,))).part(1, 2)["x"][0]
    np.testing.assert_array_equal(other, found / 2)


def test_samples_are_drawn_reproducibly(folder: Path) -> None:
    wanted = spec(8, 8, 3, dtype="uint8")
    drawn = [load_data(folder, None, 3, wanted, seed=seed) for seed in (1, 1, 0, 3, 4)]
    indices = [[found.index(i) for i in range(3)] for found in drawn]
    assert indices[0] == indices[1] == [1, 2, 4] and len({tuple(found) for found in indices}) > 2
    # Of a folder with classes, the first samples may be of one class.
    assert load_data(folder, None, 3, wanted).origin.endswith(", 3 of 5 drawn with seed 0")
    first = drawn[0]
    assert first.labels is not None and first.labels.tolist() == [1, 1, 2] and first.file(2) == "dog/2.png"
    np.testing.assert_array_equal(
        first.part(0, 3)["x"], load_data(folder, None, None, wanted).part(0, 5)["x"][[1, 2, 4]]
    )
    assert first.origin == f"{folder}, 3 of 5 drawn with seed 1"


def test_classes_are_those_of_the_model_by_name(folder: Path) -> None:
    """A folder may have some of them, in another order; other names are the folder's own."""
    found = load_data(folder, None, None, spec(8, 8, 3, dtype="uint8"))
    named = found.named(("horse", "dog", "cat", "Zebra"))
    assert named.class_names[1] == "dog" and named.labels is not None and named.labels.tolist() == [3, 2, 2, 1, 1]
    assert found.named(("0", "1", "2")) is found is found.named(())


REFUSED = {
    "no mean": (spec(3, 8, 8), None, "nothing says how these images are normalised: give the mean and std"),
    "another size": (spec(3, 9, 9), IMAGENET, r"its images become \[3, 8, 8\], and the model takes \[3, 9, 9\]"),
    "three means": (spec(1, 8, 8), IMAGENET, "give one number, or one for each of 1 channels"),
    "two inputs": (spec(3, 8, 8) + spec(3, 8, 8), IMAGENET, "images are the input of a model with one; this one has 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, folder: Path) -> None:
    wanted, steps, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        load_data(folder, None, None, wanted, preprocessing=steps)


def test_images_of_several_sizes(folder: Path) -> None:
    save(folder / "dog" / "3.png", picture(9, 6, 8))
    found = load_data(folder, None, None, spec(3, 8, 8), preprocessing=IMAGENET)
    with pytest.raises(InputError, match=r"images/dog/3\.png: its size is 8x6, that of the first one 8x8: give size"):
        found.part(0, 6)


def test_a_damaged_image(folder: Path) -> None:
    content = (folder / "dog" / "2.png").read_bytes()
    (folder / "dog" / "2.png").write_bytes(content[:100])
    found = load_data(folder, None, None, spec(3, 8, 8), preprocessing=IMAGENET)
    with pytest.raises(InputError, match=r"dog/2\.png: not an image that Pillow can read \(.+\)$"):
        found.part(4, 5)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file is an image \(\.jpg, "):
        open_folder(tmp_path)
    save(tmp_path / "cat" / "a.png", picture(0))
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputError, match="no file of its sub-folder 'dog', a class, is an image"):
        open_folder(tmp_path)


@pytest.mark.parametrize("option", ["size", "crop"])
def test_sizes_that_are_none(option: str) -> None:
    with pytest.raises(InputError, match=f"{option} 0: give a number of pixels from 1 to 65,500"):
        Preprocessing(**{option: (5, 0)})


def test_thumbnails(tmp_path: Path) -> None:
    for image in (picture(0, 200, 100), picture(0, 5, 5), picture(0, 40, 60)[..., :1]):
        (tmp_path / "x.png").write_bytes(png(ArrayPictures(image[np.newaxis], "").open(0), 50))
        with Image.open(tmp_path / "x.png") as found:
            assert max(found.size) == min(50, max(image.shape)) and len(found.getbands()) == image.shape[2]
