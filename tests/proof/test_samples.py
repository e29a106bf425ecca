"""What `verify` tells of classes, single samples and distances from the tolerances; that it reads in parts; Ctrl-C."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bnn_deploy.cli import main
from bnn_deploy.cli.verify import _print_classes, _print_distances
from bnn_deploy.data.pictures import FilePictures
from bnn_deploy.data.rows import Lazy
from bnn_deploy.proof import backends, verifier
from bnn_deploy.proof.histogram import BINS, Histogram
from bnn_deploy.proof.margins import among_highest, magnitudes
from bnn_deploy.proof.results import (
    WORST,
    ClassAccuracy,
    Classification,
    Interrupted,
    LayerResult,
    Tolerances,
    Verification,
    WorstSample,
)
from bnn_deploy.proof.samples import Tally, add_worst
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.inputs import Inputs
from support import networks
from support.converted import Converted, check
from support.golden_files import BEST


def test_among_the_five_highest(rng: np.random.Generator) -> None:
    scores = rng.standard_normal((200, 20)).astype(np.float32)
    labels = rng.integers(0, 20, 200)
    found = among_highest(scores, labels)
    wanted = (torch.from_numpy(scores).topk(5).indices.numpy() == labels[:, np.newaxis]).any(axis=1)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_raises(AssertionError, np.testing.assert_array_equal, among_highest(-scores, labels), wanted)


def test_equal_scores_and_labels_that_are_none() -> None:
    """Of seven equal scores the first five are the highest, as argmax takes the first."""
    found = among_highest(np.zeros((9, 7), np.float32), np.arange(-1, 8))
    assert found is not None and found.tolist() == [False, *[True] * 5, False, False, False]
    nothing = among_highest(np.full((1, 7), np.nan, np.float32), np.array([0]))
    assert nothing is not None and not nothing.any()
    assert among_highest(np.zeros((2, 5), np.float32), np.array([0, 1])) is None
    assert among_highest(np.zeros((2,), np.int64), np.array([0, 1])) is None


def test_classification_adds_up_over_batches() -> None:
    predicted, labels = np.array([0, 1, 2, 2, 1, 0, 2]), np.array([0, 1, 2, 1, 1, 2, 2])
    classifier = Tally("model", "kernels, x", "")
    for part in (slice(0, 3), slice(3, 7)):
        classifier.add(np.eye(3, dtype=np.float32)[predicted[part]], labels[part])
    found = classifier.result(("cat", "dog"))
    assert found is not None
    assert (found.samples, found.correct, found.correct_top5) == (7, 5, None)
    assert [(one.label, one.name, one.samples, one.correct) for one in found.classes] == [
        (0, "cat", 1, 1),
        (1, "dog", 3, 2),
        (2, "", 3, 2),
    ]
    assert found.confusion == [(0, 0, 1), (1, 1, 2), (1, 2, 1), (2, 0, 1), (2, 2, 2)]


def test_the_worst_samples_of_several_batches(rng: np.random.Generator) -> None:
    expected = rng.standard_normal((40, 4)).astype(np.float32)
    off = rng.permutation(40).astype(np.float32)
    got = expected.copy()
    got[:, 2] += off / 100
    indices, names = np.arange(0, 80, 2), [f"{i}.png" for i in range(80)]
    inputs = Inputs({"x": expected}, frozenset(), indices % 7, "", indices, FilePictures(Path(), names))
    worst: list[WorstSample] = []
    for start in range(0, 40, 15):
        part = slice(start, start + 15)
        add_worst(worst, ("b", ""), got[part], expected[part], magnitudes(expected), inputs, start)
    assert [sample.sample for sample in worst] == [2 * int(i) for i in np.argsort(-off)[:WORST]]
    assert worst[0].max_error == pytest.approx(0.39, rel=1e-3)
    for sample in worst:
        own = sample.sample // 2
        assert (sample.file, sample.label) == (f"{sample.sample}.png", sample.sample % 7)
        assert (sample.reference_class, sample.model_class) == (expected[own].argmax(), got[own].argmax())
    assert any(sample.reference_class != sample.model_class for sample in worst)


def test_histogram() -> None:
    """Against numpy's, whose last bin is open here; a value at an edge belongs to the bin that it begins."""
    rng = np.random.default_rng(0)
    values = np.concatenate([10 ** rng.uniform(-14, 3, 5000), [0] * 7, [1e-4, np.inf, 1e-45]])
    found = Histogram(1e-4)
    for part in np.split(values, [100, 3000]):
        found.add(part)
    edges = [*found.edges, np.inf]
    wanted = np.histogram(values[(values > 0) & np.isfinite(values)], np.minimum(edges, 1e30))[0]
    wanted[-1] += 1  # infinity
    assert found.counts == wanted.tolist() and found.zeros == 7
    assert found.counts != np.roll(wanted, 1).tolist()
    at = Histogram(0.25)
    at.add(np.array([0.25, 0.125, 0.5]))
    assert [BINS[i] for i, count in enumerate(at.counts) if count] == [-1, 0, 1]


@pytest.fixture(scope="module")
def labelled(lenet5: Converted) -> Verification:
    images, labels = (t.numpy() for t in networks.mnist())
    return verify(lenet5.model, lenet5.float_model, data=images[:200], labels=labels[:200], isas=BEST, pictures=5)


def test_classification_of_a_network(labelled: Verification) -> None:
    reference, model = labelled.classification
    kernels = labelled.outputs[1]
    assert (reference.network, model.network, model.backend) == ("reference", "model", kernels.backend)
    assert (reference.correct, model.correct) == (kernels.reference_correct, kernels.correct)
    assert (reference.correct_top5, model.correct_top5) == (kernels.reference_correct_top5, kernels.correct_top5)
    assert model.correct_top5 is not None and model.correct <= model.correct_top5 <= model.samples == 200
    for one in (reference, model):
        assert sum(count for _, _, count in one.confusion) == sum(entry.samples for entry in one.classes) == 200
        assert sum(count for label, taken, count in one.confusion if label == taken) == one.correct


def test_labels_are_those_of_the_samples_in_every_batch(lenet5: Converted, labelled: Verification) -> None:
    """Against the float model in onnxruntime."""
    import onnxruntime as ort

    assert backends.BATCH < 200
    images, labels = (t.numpy()[:200] for t in networks.mnist())
    session = ort.InferenceSession(lenet5.float_model)
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    predicted = scores.argmax(axis=1)
    pairs, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
    expected = sorted((*map(int, pair), int(count)) for pair, count in zip(pairs.T, counts, strict=True))
    assert labelled.classification[0].confusion == expected
    assert labelled.outputs[1].reference_correct == int((predicted == labels).sum())
    assert (predicted == np.roll(labels, backends.BATCH)).sum() < 100 < (predicted == labels).sum()


def test_histograms_of_a_network(labelled: Verification) -> None:
    for layer in labelled.layers:
        total = sum(layer.histogram.counts) + layer.histogram.zeros
        assert total == (layer.values if layer.kind == "floats" else layer.differing)
        assert not any(layer.histogram.counts[-BINS[0] + 1 :])  # beyond the tolerance


def test_pictures_are_those_of_the_samples(labelled: Verification) -> None:
    images, _ = (t.numpy() for t in networks.mnist())
    assert 0 < len(labelled.pictures) <= 5
    told = {str(sample.sample) for sample in (*labelled.worst, *labelled.disagreements)}
    assert labelled.pictures.keys() <= told
    for sample, text in labelled.pictures.items():
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            shown = np.asarray(picture, np.float64)
        whole = images[int(sample), 0].astype(np.float64)
        stretched = (whole - whole.min()) / (whole.max() - whole.min()) * 255
        assert np.abs(shown - stretched).max() <= 0.51
        assert np.abs(shown[::-1] - stretched).max() > 0.51


@pytest.mark.parametrize("name", ["conv1", "bin_conv2.conv"])
def test_the_first_flipped_bit_of_a_sample_is_found(name: str, lenet5: Converted, tmp_path: Path) -> None:
    """Thresholds that moved flip the bits of their channels, and a sample that they take along names one of them.

    Those of the first layer flip bits of the second one, too: the first one is named.
    """
    import onnx
    import onnxruntime as ort
    from onnx import numpy_helper

    from bnn_deploy.proof.pieces import with_outputs

    model = onnx.load(lenet5.model)
    node = next(node for node in model.graph.node if node.name == name)
    tensor = next(t for t in model.graph.initializer if t.name in node.input and t.name.endswith("threshold"))
    levels = numpy_helper.to_array(tensor).copy()
    moved = range(0, len(levels), 3)
    levels[moved] += 10_000
    tensor.CopyFrom(numpy_helper.from_array(levels, tensor.name))
    path = tmp_path / "moved.onnx"
    onnx.save(model, path)
    labels = np.arange(32) % 7
    result = verify(path, lenet5.float_model, data=lenet5.images, labels=labels, isas=BEST, reference_samples=0)
    found = [d for d in result.disagreements if d.backend == f"kernels, {BEST[0]}"]
    layer = next(layer for layer in result.layers if layer.layer == name)
    floats = onnx.load(lenet5.float_model)
    before = next(node.input[0] for node in floats.graph.node if layer.source in node.output)
    session = ort.InferenceSession(with_outputs(floats, [before]))
    (expected,) = session.run([before], {session.get_inputs()[0].name: lenet5.images})
    assert len(found) > 3
    for d in found:
        assert (d.layer, d.explained, d.label) == (name, False, d.sample % 7) and d.channel in moved
        here = expected[(slice(None), d.channel, *d.position)]
        assert here[d.sample] == pytest.approx(d.pre_activation, rel=1e-4)
        if name != "conv1":  # behind which the margins of images are equal
            assert np.count_nonzero(np.isclose(here, d.pre_activation, rtol=1e-4)) == 1, "others have other values"
    assert not layer.passed and ", position" in layer.worst
    assert sum(layer.histogram.counts[-BINS[0] + 1 :]) > 0


def test_parts_of_any_size_give_the_same(lenet5: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose values fill the memory runs fewer samples at a time; the counts are the same."""
    whole = check(lenet5, lenet5.float_model, 21, isas=BEST, reference_samples=5)
    monkeypatch.setattr(verifier, "BATCH_BYTES", 1)
    sizes: list[int] = []
    real = verifier.Verifier._batch_of

    def batch_of(self: Any, start: int, stop: int) -> Any:
        sizes.append(stop - start)
        return real(self, start, stop)

    monkeypatch.setattr(verifier.Verifier, "_batch_of", batch_of)
    steps: list[Any] = []
    parts = check(lenet5, lenet5.float_model, 21, isas=BEST, reference_samples=5, progress=steps.append)
    assert sizes == [1] * 21
    shares = [step.share for step in steps]
    assert shares == sorted(shares) and shares[0] == 0 and 0.9 < shares[-1] < 1, "how much is done before each step"
    assert parts.passed
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert (one.layer, one.values, one.differing, one.zeros) == (
            other.layer,
            other.values,
            other.differing,
            other.zeros,
        )
    for mine, others in zip(whole.outputs, parts.outputs, strict=True):
        assert (mine.samples, mine.same_class, mine.agreeing) == (others.samples, others.same_class, others.agreeing)


def test_data_is_read_in_parts(lenet5: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than a batch of a file is asked for."""
    np.savez_compressed(tmp_path / "x.npz", images=np.tile(lenet5.images, (5, 1, 1, 1)), labels=np.arange(160) % 10)
    asked: list[int] = []
    real = Lazy.__getitem__

    def get(self: Lazy, part: slice) -> Any:
        result = real(self, part)
        asked.append(len(result) if result.ndim == 4 else 0)
        return result

    monkeypatch.setattr(Lazy, "__getitem__", get)
    result = verify(lenet5.model, lenet5.float_model, data=tmp_path / "x.npz", isas=BEST, reference_samples=0)
    assert (result.passed, result.samples) == (True, 160)
    assert max(asked) == backends.BATCH


def interrupted(converted: Converted, at: int) -> Interrupted:
    steps = 0

    def progress(step: str) -> None:
        nonlocal steps
        steps += step.startswith("verifying")
        if steps == at:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        check(converted, converted.float_model, 32, isas=BEST, progress=progress)
    return caught.value


def test_ctrl_c_leaves_what_is_known(lenet5: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BATCH", 10)
    monkeypatch.setattr(verifier, "BATCH", 10)
    result = interrupted(lenet5, 5 + 4 + 3).result  # five operators, four layers, and in the second batch
    assert (result.interrupted, result.samples, result.planned, result.passed) == (True, 10, 32, False)
    assert result.failures == ["it was interrupted after 10 of 32 samples: what is known is partial"]
    assert [output.samples for output in result.outputs] == [10, 10, 1]
    assert len(result.operators) == 5 and result.isas == BEST
    assert isinstance(interrupted(lenet5, 1), KeyboardInterrupt)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["interrupted"] is True


def test_the_command_prints_what_is_known(lenet5: Converted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", lenet5.images)
    stopped = interrupted(lenet5, 5 + 3)

    def stop(*args: Any, **options: Any) -> None:
        raise stopped

    monkeypatch.setattr("bnn_deploy.cli.verify.verify", stop)
    result = CliRunner().invoke(main, ["verify", str(lenet5.model), "--against", str(lenet5.float_model)])
    assert (result.exit_code, result.stderr) == (130, "error: interrupted\n")
    assert "1. Operators" in result.stdout and "conv1" in result.stdout
    assert result.stdout.endswith(
        "FAILED: it was interrupted after 0 of 32 samples: what is known is partial\nFAILED\n"
    )


def test_the_tables(lenet5: Converted, tmp_path: Path) -> None:
    images, labels = (t.numpy() for t in networks.mnist())
    np.savez(tmp_path / "x.npz", images=images[:50], labels=labels[:50])
    arguments = ["verify", lenet5.model, "--against", lenet5.float_model, "--data", tmp_path / "x.npz"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--isa", BEST[0]])
    assert result.exit_code == 0, result.output
    assert "Of all floats, in units of the tolerance: " in result.stdout
    assert "Among the five highest scores: 100.00 % of the reference, 100.00 % of the model." in result.stdout
    assert "The 5 least accurate of 10 classes; the confusion matrices are in the JSON:" in result.stdout


def test_distances_and_top_5_are_said_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Each difference below the bound that it is counted for; a top-5 accuracy of 0 is one."""
    layer = LayerResult("a", "a", "floats", histogram=Histogram(1.0))
    for value, count in ((2**-10, 3), (0.99 * 2**-10, 5), (0.1, 7), (0.2, 11), (1.5, 13), (0.0, 17)):
        layer.histogram.add(np.full(count, value))
    empty = Verification("m", "r", "d", 1, 0, [], Tolerances())
    _print_distances(replace(empty, layers=[layer]))
    printed = "22 below 1/1024, 3 below 1/128, 7 below 1/8, 11 below 1, 13 beyond."
    assert " ".join(capsys.readouterr().out.split()) == f"Of all floats, in units of the tolerance: {printed}"
    classes = [ClassAccuracy(0, "", 4, 1), ClassAccuracy(1, "", 5, 0)]
    fives = [
        Classification(name, "", "", 9, 1, correct, classes, [(0, 0, 1), (0, 1, 1), (0, 2, 2), (1, 0, 5)])
        for name, correct in (("reference", 0), ("model", 3))
    ]
    _print_classes(replace(empty, classification=fives))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "Among the five highest scores: 0.00 % of the reference, 33.33 % of the model." in lines
    assert [line for line in lines if line[:2] in ("0 ", "1 ")] == [
        "1 5 0.00 % 0.00 % 0 (5 of 5)",
        "0 4 25.00 % 25.00 % 2 (2 of 4)",
    ]


def test_large_weights_are_computed_once(
    lenet5: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Outside of the sessions, and remembered by the ReferenceEvaluator: the same results, and damage is found."""
    import onnx
    from onnx import numpy_helper

    from bnn_deploy.proof import constants
    from bnn_deploy.proof.constants import without_constants

    monkeypatch.setattr(constants, "LARGE_BYTES", 1000)
    model = onnx.load(lenet5.model)
    assert constants.has_large_bits(model)
    content, weights = without_constants(model)
    assert {array.shape for array in weights.values()} >= {(500, 50, 4, 4)}
    assert len(content) < max(array.nbytes for array in weights.values()), "they are not in the model again"
    whole, parted = (backends.Backends([], 1).make(m, "bodies, onnxruntime") for m in (lenet5.model.as_posix(), model))
    x = {"input": lenet5.images[:4]}
    np.testing.assert_allclose(parted(x)[0], whole(x)[0], rtol=1e-5, atol=1e-5)
    result = check(lenet5, lenet5.float_model, 21, isas=BEST, reference_samples=5)
    assert result.passed, result.failures
    damaged = next(t for t in model.graph.initializer if list(t.dims) == [500, 4, 4, 2])
    words = numpy_helper.to_array(damaged).copy()
    words.flat[int(rng.integers(words.size))] ^= 1
    damaged.CopyFrom(numpy_helper.from_array(words, damaged.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    result = verify(tmp_path / "damaged.onnx", lenet5.float_model, data=lenet5.images[:8], isas=BEST)
    assert [layer.layer for layer in result.layers if not layer.passed] == ["bin_ip1.linear"]


@pytest.mark.parametrize("wrong", [(), (20,), (5, 6)])
def test_batches_of_a_network_with_large_weights(
    lenet5: Converted, monkeypatch: pytest.MonkeyPatch, wrong: tuple[int, ...]
) -> None:
    """Small with the function bodies, then larger; the network itself runs each sample once, and any of them counts."""
    import onnxruntime as ort

    from bnn_deploy.proof import constants
    from bnn_deploy.proof.reference import Source, TorchReference

    monkeypatch.setattr(constants, "LARGE_BYTES", 1000)
    monkeypatch.setattr(verifier, "BATCH", 4)
    session = ort.InferenceSession(lenet5.float_model)
    sizes: list[int] = []
    seen: list[Any] = []
    batch_of = verifier.Verifier._batch_of
    make = TorchReference.__init__

    def count(self: Any, start: int, stop: int) -> Any:
        sizes.append(stop - start)
        return batch_of(self, start, stop)

    def watch(self: TorchReference, export: Any, source: Source) -> None:
        def run(x: dict[str, Any]) -> list[Any]:
            (images,) = x.values()
            begin = sum(map(len, seen))
            seen.append(images)
            (found,) = session.run(None, {session.get_inputs()[0].name: images})  # with binary weights, unlike its own
            found[[row for row in range(len(images)) if begin + row in wrong]] = 0
            return [found]

        make(self, export, replace(source, run=run))

    monkeypatch.setattr(verifier.Verifier, "_batch_of", count)
    monkeypatch.setattr(TorchReference, "__init__", watch)
    result = check(lenet5, lenet5.checkpoint, 21, isas=BEST, reference_samples=2, slow_samples=5)
    assert sizes == [2, 2, 2, 4, 4, 4, 3]
    assert [len(images) for images in seen] == [4, 2, 4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(seen), lenet5.images[:21])
    assert [(source.samples, source.agreeing) for source in result.source] == [(21, 21 - len(wrong))]
    assert {output.backend: output.samples for output in result.outputs} == {
        f"kernels, {BEST[0]}": 21,
        "bodies, onnxruntime": 6,
        "bodies, ReferenceEvaluator": 2,
    }


def test_what_is_slow_runs_some_samples(lenet5: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others all of them: a fault that only the last samples show is found."""
    monkeypatch.setattr(verifier, "BATCH", 4)
    options: dict[str, Any] = {"isas": [BEST[0], "scalar"], "slow_samples": 6}
    result = check(lenet5, lenet5.checkpoint, 14, **options)
    assert result.passed, result.failures
    few = {"bodies, onnxruntime": 8, "kernels, scalar": 8, "bodies, ReferenceEvaluator": 1}
    assert {output.backend: output.samples for output in result.outputs} == {f"kernels, {BEST[0]}": 14} | few
    assert [source.samples for source in result.source] == [14]
    (note,) = (note for note in result.notes if "slow" in note)
    assert note.endswith("these are slow, and ran the first 8 of 14 samples (slow_samples=N)")
    assert not [n for n in check(lenet5, lenet5.checkpoint, 8, **options).notes if "slow" in n]

    real = backends.run_session
    runs = 0

    def spoil(session: Any, names: list[str] | None, inputs: backends.Arrays) -> list[Any]:
        nonlocal runs
        outputs = real(session, names, inputs)
        if inputs.keys() == {"input"} and names is None and outputs[0].shape == (2, 10):  # the last batch, running free
            runs += 1
            outputs[0] = -outputs[0]
        return outputs

    monkeypatch.setattr(backends, "run_session", spoil)
    spoiled = check(lenet5, lenet5.checkpoint, 14, **options)
    assert runs == 1 and not spoiled.passed
    assert {d.sample for d in spoiled.disagreements if not d.explained} == {12, 13}


def test_kernels_that_are_all_there_is_are_not_slow(lenet5: Converted) -> None:
    result = check(lenet5, lenet5.float_model, 8, isas=["scalar"], slow_samples=1, reference_samples=0)
    assert {output.backend: output.samples for output in result.outputs}["kernels, scalar"] == 8


def test_the_evaluator_has_a_budget_of_time(lenet5: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user says how many samples it runs; and in those that it runs, damage is found."""

    def samples_of_evaluator(**options: Any) -> tuple[int, int, int]:
        result = check(lenet5, lenet5.float_model, 8, isas=BEST, **options)
        (output,) = (output for output in result.outputs if output.backend == backends.Backends.EVALUATOR)
        said = sum("ReferenceEvaluator" in note for note in result.notes)
        return result.reference_samples, output.samples, said

    assert samples_of_evaluator(reference_samples=None) == (8, 8, 0)
    monkeypatch.setattr(verifier, "EVALUATOR_SECONDS", 1e-6)
    assert samples_of_evaluator(reference_samples=None) == (1, 1, 1)
    assert samples_of_evaluator(reference_samples=5) == (5, 5, 0)
    real = backends.Backends.make

    def make(self: Any, model: Any, backend: str) -> backends.Runner:
        run = real(self, model, backend)
        return (lambda x: [y + 1 for y in run(x)]) if backend == self.EVALUATOR else run

    monkeypatch.setattr(backends.Backends, "make", make)
    result = check(lenet5, lenet5.float_model, 8, isas=BEST, reference_samples=None)
    assert all(op.differing[backends.Backends.EVALUATOR] for op in result.operators)
