"""`Classifier`: pictures in every form give the answer of a session that is fed by hand, and wrong ones are refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bnn_deploy import Classifier, ImageInput, Prediction, Preprocessing, convert, load_session
from bnn_deploy.errors import InputError, SetupError
from support.converted import Converted
from support.networks import NIN, checkpoint

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAINED_ON = Preprocessing(mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    """CIFAR-10 test images as they were before they were normalised: uint8 [N, 32, 32, 3]."""
    with np.load(NIN / "cifar10_100.npz") as data:
        return np.moveaxis(np.rint((data["input"] * 0.5 + 0.5) * 255), 1, -1).astype(np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained NIN: inputs of floats, of bytes with the channels first and last, and of floats without a note."""
    folder = tmp_path_factory.mktemp("models")
    inputs: dict[str, dict[str, Any]] = {
        "float": {"preprocessing": TRAINED_ON},
        "nchw": {"image_input": ImageInput((0.5,), (0.5,), "nchw")},
        "nhwc": {"image_input": ImageInput((0.5,), (0.5,), "nhwc")},
    }
    made = {
        name: convert(checkpoint("nin", folder), folder / f"{name}.onnx", arch="nin", classes=NAMES, **options).output
        for name, options in inputs.items()
    }
    without = onnx.load(made["float"])
    del without.metadata_props[:]
    onnx.save(without, folder / "unknown.onnx")
    return {**made, "unknown": folder / "unknown.onnx"}


def fed_by_hand(model: Path, form: str, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The output for one picture, which is made the input without anything of the package."""
    x = picture if form == "nhwc" else np.moveaxis(picture, -1, 0)
    if form in ("float", "unknown"):
        x = (x.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    (output,) = load_session(model, threads=1).run(None, {"input": np.ascontiguousarray(x)[None]})
    return output[0]


def is_answer(found: tuple[Prediction, ...], output: NDArray[np.float32]) -> bool:
    """Whether predictions are those of an output, all of it."""
    order = np.argsort(-output, kind="stable")
    shares = torch.from_numpy(output).double().softmax(0).numpy()
    return (
        [item.index for item in found] == order.tolist()
        and [item.label for item in found] == [NAMES[index] for index in order]
        and [item.score for item in found] == output[order].tolist()
        and np.allclose([item.probability for item in found], shares[order], rtol=1e-12)
    )


@pytest.mark.parametrize("form", ["float", "nchw", "nhwc"])
def test_the_answer_is_that_of_a_session_fed_by_hand(
    form: str, models: dict[str, Path], pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    classifier = Classifier(models[form], threads=1)
    for number in (0, 1, 2):
        picture = pictures[number]
        file = tmp_path / "p.png"
        Image.fromarray(picture).save(file)
        output = fed_by_hand(models[form], form, picture)
        first = np.ascontiguousarray(np.moveaxis(picture, -1, 0))
        for given in (picture, first, picture[None], torch.from_numpy(picture), file, file.read_bytes()):
            assert is_answer(classifier.predict(given, top=10), output)
        assert is_answer(classifier.predict(Image.fromarray(picture), top=10), output)
        # Another picture, and colours in another order, as OpenCV has them, show.
        assert not is_answer(classifier.predict(pictures[number + 1], top=10), output)
        assert not is_answer(classifier.predict(picture[..., ::-1], top=10), output)
    assert classifier.predict(picture) == classifier.predict(picture, top=10)[:5]
    assert classifier.predict(pictures[0], top=1)[0].label == "cat"


def test_another_preprocessing_is_another_answer(models: dict[str, Path], pictures: NDArray[np.uint8]) -> None:
    picture = pictures[0]
    output = fed_by_hand(models["float"], "float", picture)
    for noted, given in ((models["float"], None), (models["unknown"], TRAINED_ON), (models["float"], TRAINED_ON)):
        assert is_answer(Classifier(noted, preprocessing=given, classes=NAMES).predict(picture, 10), output)
    for wrong in (Preprocessing(mean=(0.4,)), Preprocessing(std=(0.25,)), Preprocessing(mean=(0.5, 0.5, 0.4))):
        classifier = Classifier(models["float"], preprocessing=wrong)
        assert not is_answer(classifier.predict(picture, 10), output)


def test_normalised_floats_are_taken_as_they_are(models: dict[str, Path], pictures: NDArray[np.uint8]) -> None:
    x = np.moveaxis(pictures[3].astype(np.float32) / np.float32(255) * 2 - 1, -1, 0)
    (output,) = load_session(models["float"], threads=1).run(None, {"input": x[None]})
    classifier = Classifier(models["float"], threads=1)
    assert is_answer(classifier.predict(x, 10), output[0]) and is_answer(classifier.predict(x[None], 10), output[0])
    assert not is_answer(classifier.predict(x + np.float32(0.1), 10), output[0])


def test_size_and_crop_are_those_of_torchvision(models: dict[str, Path], pictures: NDArray[np.uint8]) -> None:
    large = np.asarray(Image.fromarray(pictures[0]).resize((60, 48), Image.Resampling.BICUBIC))
    steps = dataclasses.replace(TRAINED_ON, size=36, crop=32)
    for form, given in (("float", steps), ("nhwc", Preprocessing(size=36, crop=32))):
        by_hand = np.asarray(Image.fromarray(large).resize((45, 36), Image.Resampling.BILINEAR))[2:34, 6:38]
        classifier = Classifier(models[form], preprocessing=given)
        assert is_answer(classifier.predict(large, 10), fed_by_hand(models[form], form, by_hand))
        assert not is_answer(
            Classifier(models[form], preprocessing=dataclasses.replace(given, size=40)).predict(large, 10),
            fed_by_hand(models[form], form, by_hand),
        )


def test_gray_pictures_and_classes_without_names(lenet5: Converted, tmp_path: Path) -> None:
    digit = np.rint((lenet5.images[0, 0] * 0.3081 + 0.1307) * 255).astype(np.uint8)
    steps = Preprocessing(mean=(0.1307,), std=(0.3081,))
    classifier = Classifier(lenet5.model, threads=1, preprocessing=steps)
    x = (digit.astype(np.float32) / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
    (output,) = classifier.session.run(None, {"input": x[None, None]})
    Image.fromarray(digit).save(tmp_path / "digit.png")
    Image.fromarray(np.stack([digit] * 3, -1)).save(tmp_path / "coloured.png")
    for given in (digit, digit[..., None], digit[None], tmp_path / "digit.png", tmp_path / "coloured.png"):
        (best,) = classifier.predict(given, top=1)
        assert (best.label, best.index, best.score) == (str(output.argmax()), output.argmax(), output.max())


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid"])
def test_probabilities_are_not_made_again(
    last: str, models: dict[str, Path], pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = onnx.load(models["nhwc"])
    (output,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node(last, [output.name], ["p"]))
    model.graph.node.append(onnx.helper.make_node("Identity", ["p"], ["scores"]))
    output.name = "scores"
    onnx.save(model, tmp_path / "m.onnx")
    classifier = Classifier(tmp_path / "m.onnx", threads=1)
    assert all(item.probability == item.score for item in classifier.predict(pictures[0]))
    if last == "Softmax":
        plain = Classifier(models["nhwc"], threads=1).predict(pictures[0])
        assert np.allclose(
            [item.score for item in classifier.predict(pictures[0])], [item.probability for item in plain], rtol=1e-5
        )


def test_what_is_refused(models: dict[str, Path], pictures: NDArray[np.uint8], tmp_path: Path) -> None:
    picture = pictures[0]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.fromarray(picture[:20]).save(tmp_path / "small.png")
    for form, given, message in (
        ("nhwc", tmp_path / "none.png", "none.png: no such file"),
        ("nhwc", tmp_path / "broken.png", "broken.png: not an image that Pillow can read"),
        (
            "nhwc",
            tmp_path / "small.png",
            r"small.png: its images become \[20, 32, 3\], and the model takes \[32, 32, 3\]",
        ),
        (
            "nchw",
            picture[:20],
            r"its images become \[3, 20, 32\], and the model takes \[3, 32, 32\]: give size and crop",
        ),
        ("nhwc", pictures[:2], "these are 2 pictures: give one"),
        ("nhwc", picture[..., 0], "its images have 1 channels; the model needs 3"),
        ("nhwc", np.zeros((32, 32, 4), np.uint8), r"have shape \[1, 32, 32, 4\]"),
        ("nhwc", picture.astype(np.float32), "the inputs are float32; the network needs uint8"),
        ("float", np.zeros((32, 32, 3), np.float32), r"have shape \[1, 32, 32, 3\]; the model needs"),
        ("float", "picture", "picture: no such file"),
        ("float", None, "image: NoneType is no array"),
        ("unknown", picture, "nothing says how these images are normalised: give the mean and std"),
    ):
        with pytest.raises(InputError, match=message):
            Classifier(models[form]).predict(given)
    with pytest.raises(InputError, match="the model takes bytes, and normalises them itself: leave out mean and std"):
        Classifier(models["nhwc"], preprocessing=TRAINED_ON)
    with pytest.raises(InputError, match=r"shape \[1, 10\], which is not one number for each of 3 classes"):
        Classifier(models["nhwc"], classes=("a", "b", "c")).predict(picture)
    with pytest.raises(InputError, match="top is 0"):
        Classifier(models["nhwc"]).predict(picture, top=0)


def test_models_of_another_form_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    for edit, message in (
        (lambda m: m.graph.output.append(m.graph.output[0]), "a classifier has one input and one output; this model"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 4), "batches of exactly 4"),
    ):
        model = onnx.load(models["nhwc"])
        edit(model)
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(InputError, match=message):
            Classifier(tmp_path / "m.onnx")


def test_only_files_and_resizing_need_pillow(
    models: dict[str, Path], pictures: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(pictures[0]).save(tmp_path / "p.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert len(Classifier(models["float"]).predict(pictures[0])) == 5
    with pytest.raises(SetupError, match="images are read with Pillow, which is not installed"):
        Classifier(models["float"]).predict(tmp_path / "p.png")
