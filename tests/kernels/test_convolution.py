"""The convolutions' kernels against a direct numpy reference, bit for bit, on every ISA of the machine.

The reference works on arrays of -1, 0 and +1 and knows nothing of words, tiles or tables. Each
model holds many independent nodes, so that one session checks many shapes. The ISAs come from
``LibraryInfo``: one that the machine lacks is not in the list, and nothing is skipped.
"""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.kernels import (
    CHANNEL_TAILS,
    INT32,
    ISAS,
    PAD_VALUES,
    ConvBatch,
    ConvCase,
    assert_convs,
    make_session,
    only_runs,
    pack,
    same,
)


@pytest.mark.parametrize("isa", ISAS)
def test_every_input_channel_tail(isa: str) -> None:
    cases = [ConvCase(c, 5, (3, 3), (4, 3), pads=(1,) * 4, seed=c, pad_value=PAD_VALUES[c % 4]) for c in CHANNEL_TAILS]
    cases += [ConvCase(c, 17, (1, 1), (3, 3), seed=c) for c in CHANNEL_TAILS]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_output_channel_tail(isa: str) -> None:
    # Up to two tiles of 64 channels and one, so past two vectors of every unit.
    outputs = [*range(1, 130), 160, 192, 193, 256]
    cases = [ConvCase(33, o, (3, 3), (4, 5), pads=(1,) * 4, seed=o) for o in outputs]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_pixel_tile_tail(isa: str) -> None:
    widths = [*range(1, 18), 63, 64, 65, 127, 128, 129]
    cases = [ConvCase(40, 20, (3, 1), (3, w), seed=w) for w in widths]
    cases += [ConvCase(64, 64, (3, 3), (n, n), pads=(1,) * 4, seed=n) for n in (7, 14, 9)]
    cases += [ConvCase(64, 40, (3, 3), (7, 7), pads=(1,) * 4, batch=b, seed=b) for b in (2, 3, 5)]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pad_value", PAD_VALUES)
def test_large_images(isa: str, pad_value: str) -> None:
    """From 256 pixels on a unit may take pixels, not channels, as the lanes of its vectors."""
    cases = [
        ConvCase(c, o, (3, 3), size, strides, pads, dilations, group, batch=2, pad_value=pad_value, seed=o)
        for c, o, group in ((32, 6, 1), (40, 67, 1), (33, 32, 1), (70, 21, 1), (64, 70, 2), (66, 40, 2), (9, 27, 9))
        for size, strides, pads, dilations in (
            ((16, 16), (1, 1), (1, 1, 1, 1), (1, 1)),
            ((17, 29), (1, 1), (1, 1, 1, 1), (1, 1)),
            ((39, 41), (2, 2), (1, 0, 2, 1), (1, 1)),
            ((19, 67), (1, 3), (0, 3, 0, 1), (2, 3)),
        )
    ]
    # Every number of taps and of words, and more border patterns than a vector has lanes.
    cases += [ConvCase(40, 7, (k, k), (18, 19), pads=(k // 2,) * 4, pad_value=pad_value) for k in range(1, 8)]
    cases += [ConvCase(c, 13, (3, 1), (9, 40), pad_value=pad_value) for c in (1, 95, 96, 129, 1400)]
    cases += [ConvCase(64, 33, (5,), (300,), (1,), (2, 2), pad_value=pad_value)]
    # Every way to split rows into words, rows shorter than a vector, and kernels that are too wide for it.
    sizes = ((9, 40), (66, 5), (13, 23))
    cases += [ConvCase(32 * words, 7, (2, 3), size, pad_value=pad_value) for words in (3, 5, 16, 17) for size in sizes]
    cases += [ConvCase(40, 7, (1, k), (9, 47), pads=(0, 1, 0, 2), pad_value=pad_value) for k in (8, 9)]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_tail_of_pixels_in_a_large_image(isa: str) -> None:
    cases = [ConvCase(40, 1 + tail % 13, (1, 3), (1, 258 + tail)) for tail in range(65)]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_size(isa: str) -> None:
    kernels = [(k, k) for k in range(1, 12)] + [(1, 3), (3, 1), (2, 5), (7, 4), (1, 11), (11, 2)]
    cases = [
        ConvCase(36, 18, kernel, (12, 13), pads=tuple(k // 2 for k in kernel * 2), pad_value=value)
        for kernel, value in itertools.product(kernels, ("zero", "per_channel"))
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pad_value", PAD_VALUES)
def test_strides_pads_dilations(isa: str, pad_value: str) -> None:
    cases = [
        ConvCase(c, 35, (3, 3), (9, 8), strides, pads, dilations, batch=2, pad_value=pad_value)
        for c, strides, pads, dilations in itertools.product(
            (20, 64),
            ((1, 1), (2, 2), (3, 1)),
            ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0), (5, 0, 1, 6)),
            ((1, 1), (2, 1), (1, 3), (2, 2)),
        )
    ]
    # A window wholly inside the padding, and windows that leave the image on both sides.
    cases += [
        ConvCase(33, 3, (2, 2), (1, 1), pads=(4,) * 4, pad_value=pad_value),
        ConvCase(33, 3, (5, 7), (2, 2), pads=(4, 6, 4, 6), pad_value=pad_value),
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pad_value", ["zero", "per_channel"])
def test_groups(isa: str, pad_value: str) -> None:
    shapes = [  # channels, outputs, group
        (64, 64, 2),
        (128, 64, 2),
        (64, 128, 2),
        (96, 96, 3),
        (40, 20, 2),
        (40, 70, 5),
        (20, 130, 2),
        (63, 21, 21),
        (130, 66, 2),
        (70, 70, 70),
        (33, 66, 33),
        (256, 256, 4),
    ]
    cases = [
        ConvCase(c, o, (3, 3), (5, 6), pads=pads, dilations=d, group=g, batch=2, pad_value=pad_value)
        for c, o, g in shapes
        for pads, d in (((0,) * 4, (1, 1)), ((1,) * 4, (1, 1)), ((2, 0, 1, 2), (1, 2)))
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_one_dimensional(isa: str) -> None:
    cases = [
        ConvCase(c, 21, (k,), (20,), (s,), (p, q), (d,), g, batch=2, pad_value=value)
        for (c, g), (k, s, p, q, d), value in itertools.product(
            ((30, 1), (64, 1), (64, 1), (66, 3)),
            ((1, 1, 0, 0, 1), (3, 1, 1, 1, 1), (5, 2, 0, 3, 2), (4, 3, 2, 0, 1)),
            PAD_VALUES,
        )
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pad_value", PAD_VALUES)
def test_volumes(isa: str, pad_value: str) -> None:
    """Three spatial dimensions: also of the tile sizes of images, and where depth alone is padded, or strided."""
    cases = [
        ConvCase(c, o, kernel, (5, 4, 6), strides, pads, dilations, group, batch=2, pad_value=pad_value)
        for (c, o, group), (kernel, strides, pads, dilations) in itertools.product(
            ((30, 21, 1), (64, 70, 1), (66, 6, 3)),
            (
                ((3, 3, 3), (1, 1, 1), (1,) * 6, (1, 1, 1)),
                ((1, 3, 3), (1, 2, 2), (1, 1, 1, 0, 1, 1), (1, 1, 1)),
                ((3, 1, 1), (1, 1, 1), (1, 0, 0, 1, 0, 0), (1, 1, 1)),
                ((2, 3, 2), (2, 1, 3), (0, 2, 1, 3, 0, 2), (2, 1, 2)),
                ((1, 1, 1), (2, 1, 1), (0,) * 6, (1, 1, 1)),
            ),
        )
    ]
    cases += [ConvCase(40, 9, (2, 2, 3), (3, 16, 17), pads=(0, 1, 1, 1, 0, 1), pad_value=pad_value)]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_fully_connected(isa: str) -> None:
    cases = [
        ConvCase(c, o, (1, 1), (1, 1), batch=b, seed=o)
        for c, o, b in itertools.product((31, 512, 800), (1, 10, 100, 1000), (1, 3, 50))
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("channels", "least"), [(30_000, 2**15), (100_000, 2**16)])
def test_mismatches_beyond_16_bits(isa: str, channels: int, least: int) -> None:
    case = ConvCase(channels, 9, (1, 2), (1, 6))
    case.x[:, :, :, ::2] = 1
    case.w[::2] = 1
    case.w[1::2] = -1
    mismatches = (2 * channels - case.sums()) // 2
    assert least < mismatches.max() < 3 * least
    assert_convs([case], isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_product_and_none_differs(isa: str) -> None:
    """The largest and the smallest population counts, in all pixels at once and in every other one."""
    cases = [ConvCase(c, 70, (3, 3), (5, 6)) for c in (32, 96, 200, 320)]
    for case, step in zip(cases, (1, 2, 1, 2), strict=True):
        case.x[:] = 1
        case.x[:, :, :, 1::step] = -1
        case.w[::2] = 1
        case.w[1::2] = -1
    assert_convs(cases, isa)
    wrong = ConvBatch(cases, [corrupted(case, "weight bit") for case in cases]).differences(isa)
    assert all(any(line.endswith(f" of {case}") for line in wrong) for case in cases)


@pytest.mark.parametrize("isa", ISAS)
def test_empty_batch(isa: str) -> None:
    cases = [ConvCase(40, 33, (3, 3), (5, 5), pads=(1,) * 4, batch=0), ConvCase(9, 2, (3,), (5,), batch=0)]
    assert not ConvBatch(cases).differences(isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("absent", [0, 1, None])
@pytest.mark.parametrize(("size", "group"), [((7, 9), 1), ((17, 19), 1), ((32, 32), 1), ((5, 5), 2), ((17, 16), 2)])
def test_residual_with_an_absent_output(isa: str, absent: int | None, size: tuple[int, int], group: int) -> None:
    case = ConvCase(64, 72, (3, 3), size, pads=(1,) * 4, group=group, batch=2)
    batch = ConvBatch([case])
    node = batch.model.graph.node[2]
    assert node.op_type == "BinaryConvResidual"
    expected = dict(zip(node.output, case.expected()[2:], strict=True))
    if absent is not None:
        del expected[node.output[absent]]
        if absent == 0:
            node.output[0] = ""
        else:
            del node.output[1]
    kept = [output for output in batch.model.graph.output if output.name in expected]
    del batch.model.graph.output[:]
    batch.model.graph.output.extend(kept)
    del batch.model.graph.node[:2]
    with only_runs(isa):
        got = make_session(batch.model, isa).run(list(expected), batch.feeds)
    assert all(same(actual, wanted) for actual, wanted in zip(got, expected.values(), strict=True))


def test_extreme_thresholds_are_never_and_always() -> None:
    case = ConvCase(64, 64, (3, 3), (6, 6), pads=(1,) * 4)
    case.threshold[:32] = INT32.max
    case.threshold[32:] = INT32.min
    for isa in ISAS:
        batch = ConvBatch([case])
        assert not batch.differences(isa)
        bits = make_session(batch.model, isa).run(["B0"], batch.feeds)[0]
        assert (bits == np.array([0, 0xFFFFFFFF], np.uint32)).all()


@st.composite
def random_cases(draw: st.DrawFn) -> ConvCase:
    rank = draw(st.sampled_from([1, 2]))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    dilations = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    pads = tuple(draw(st.integers(0, 4)) for _ in range(2 * rank))
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = tuple(draw(st.integers(max(1, window - pads[i] - pads[rank + i]), 12)) for i, window in enumerate(windows))
    group = draw(st.integers(1, 4))
    return ConvCase(
        channels=group * draw(st.integers(1, 70)),
        outputs=group * draw(st.integers(1, 70)),
        kernel=kernel,
        size=size,
        strides=tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        pads=pads,
        dilations=dilations,
        group=group,
        batch=draw(st.integers(1, 3)),
        pad_value=draw(st.sampled_from(PAD_VALUES)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=random_cases())
def test_random_geometry(isa: str, case: ConvCase) -> None:
    assert not ConvBatch([case]).differences(isa)


# --- the same comparison catches a corruption -------------------------------------------------


def corrupted(case: ConvCase, what: str) -> dict[str, np.ndarray]:
    values = {name: value.copy() for name, value in case.constants().items()}
    if what == "weight bit":
        values["W"][-1, 1, 2, 0] ^= 1 << 3
    elif what == "threshold":
        acc = case.sums()[:, 7]  # a threshold that one sum reaches, moved past it
        values["threshold"][7] = acc.max() + 1
        case.threshold[7] = acc.max()
    elif what == "bias":
        values["bias"][3] = np.nextafter(values["bias"][3] + 1, np.float32(np.inf))
    elif what == "float threshold":  # the threshold is a value of Y: one step up, and its bit is lost
        values["float_threshold"][3] = np.nextafter(values["float_threshold"][3], np.float32(np.inf))
    elif what == "pad value":
        values["pad"] = np.ones(1, np.float32)
    return values


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "what", ["nothing", "weight bit", "threshold", "float threshold", "bias", "residual", "pad value", "pads"]
)
@pytest.mark.parametrize("size", [(6, 7), (20, 17)])
def test_a_corruption_is_caught(isa: str, what: str, size: tuple[int, int]) -> None:
    case = ConvCase(70, 40, (3, 3), size, pads=(1, 1, 1, 1), seed=5)
    batch = ConvBatch([case], [corrupted(case, what)])
    if what == "residual":
        batch.feeds["R0"][0, 39, 5, 6] += 1
    if what == "pads":  # the kernel gets pads (1, 1, 1, 1), the reference (2, 1, 0, 1)
        case.pads = (2, 1, 0, 1)
    assert bool(batch.differences(isa)) == (what != "nothing")


# --- threads ----------------------------------------------------------------------------------

LARGE_CASES = [
    ConvCase(128, 96, (3, 3), (40, 40), pads=(1,) * 4, batch=2),
    ConvCase(128, 128, (3, 3), (20, 20), group=2, pads=(1,) * 4, batch=4),
    ConvCase(120, 120, (3, 3), (20, 20), group=5, pads=(1,) * 4, batch=4),
    ConvCase(512, 512, (3, 3), (7, 7), pads=(1,) * 4, pad_value="one"),
    ConvCase(4096, 1000, (1, 1), (1, 1), batch=8),
    ConvCase(96, 80, (3, 3), (32, 32), pads=(1,) * 4, batch=3),  # planes a multiple of 4096 bytes apart
    ConvCase(40, 36, (1, 1), (64, 32), group=2, batch=2),
]


@pytest.mark.parametrize("isa", ISAS)
def test_one_and_two_threads_give_the_same_bits(isa: str) -> None:
    assert_convs(LARGE_CASES, isa, threads=1)
    assert_convs(LARGE_CASES, isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_concurrent_runs_on_one_session(isa: str) -> None:
    """Runs with different image sizes at once, so that the plans of the nodes change under them."""
    sizes = [(9, 9), (20, 31), (40, 40), (14, 6)]
    cases = [ConvCase(64, 64, (3, 3), size, pads=(1,) * 4, batch=2) for size in sizes]
    assert len({case.w.tobytes() for case in cases}) == len(cases)
    for case in cases:  # one set of weights, whatever the size
        case.w, case.scale, case.bias = cases[0].w, cases[0].scale, cases[0].bias
        case.threshold = cases[0].threshold
        case._float_threshold = cases[0].float_threshold(cases[0].out_shape())
    session = make_session(ConvBatch(cases[:1]).model, isa, threads=2)
    expected = [case.expected() for case in cases]
    wrong = []

    def work(case: ConvCase, outputs: list[np.ndarray]) -> None:
        feeds = {"X0": pack(case.x, 1), "R0": case.residual(case.out_shape())}
        for _ in range(30):
            got = session.run(None, feeds)
            if not all(same(a, b) for a, b in zip(got, outputs, strict=True)):
                wrong.append(case)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(cases, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
