"""BinaryConvBases, function body and kernels of every ISA, against plain numpy, bit for bit; malformed nodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.test_levels_errors import error
from support.bases import Bases
from support.levels import Conv, check, nowhere_equal, run_bodies, run_kernels

CASES = {
    "1 x 1": Bases(Conv(40, 6, (3, 3), (4, 5), pads=(1, 1, 1, 1)), (1, 1)),
    "2 x 2": Bases(Conv(33, 34, (3, 3), (4, 5), pads=(1, 1, 1, 1))),
    "4 x 1": Bases(Conv(31, 70, (3, 3), (5, 4), pads=(2, 0, 1, 3), strides=(2, 1)), (4, 1)),
    "1 x 4": Bases(Conv(64, 65, (1, 1), (5, 4)), (1, 4)),
    "3 x 3, groups": Bases(Conv(66, 9, (3, 2), (5, 6), (2, 1), (1, 0, 2, 3), (1, 2), group=3, batch=3), (3, 3)),
    "depthwise": Bases(Conv(34, 34, (3, 3), (4, 3), group=34, pads=(1, 1, 1, 1)), (1, 2)),
    "1-D": Bases(Conv(40, 6, (3,), (9,), strides=(2,), pads=(0, 2), dilations=(2,)), (2, 1)),
    "3-D": Bases(Conv(40, 6, (2, 3, 2), (3, 4, 3), pads=(1, 1, 0, 1, 0, 1)), (1, 2)),
    "fully connected": Bases(Conv(800, 70, (1, 1), (1, 1)), (2, 2)),
    "windows that see padding only": Bases(Conv(20, 6, (2, 2), (2, 3), pads=(3, 2, 2, 4)), (1, 2)),
    "several images in a tile": Bases(Conv(40, 6, (2, 2), (3, 3), batch=33, pads=(1, 1, 0, 0)), (1, 1)),
    "rows in conflict": Bases(Conv(32, 34, (3, 3), (32, 32), batch=1, pads=(1, 1, 1, 1)), (2, 1)),
    "long windows": Bases(Conv(300, 65, (3, 3), (4, 3), pads=(1, 1, 1, 1), batch=1), (1, 2)),
}


def check_everywhere(conv: Bases) -> None:
    model, x, expected = conv.model(), conv.x(), conv.expected()
    check(run_bodies(model, x), expected)
    check(run_kernels(model, x), expected)


@pytest.mark.parametrize("case", CASES)
def test_binary_conv_bases(case: str) -> None:
    check_everywhere(CASES[case])


def test_scales_of_zero_and_their_signs() -> None:
    """Terms that are 0 add nothing, and -0 is none of the results."""
    conv = Bases(Conv(40, 6, (3, 3), (4, 5), pads=(1, 1, 1, 1)), (2, 1))
    conv.scale[:, 0], conv.scale[0] = 0, -0.0
    conv.scale[:, :, 0] = conv.conv.bias[0] = -0.0
    assert not np.signbit(conv.expected()[:, 0]).any()
    check_everywhere(conv)


def test_kernels_on_two_threads() -> None:
    conv = Bases(Conv(64, 70, (3, 3), (16, 16), pads=(1, 1, 1, 1), batch=2))
    check(run_kernels(conv.model(), conv.x(), threads=2), conv.expected())


def corrupt_weight(conv: Bases) -> None:
    conv.weights[2, 3, 4, 1, 2] *= -1


def corrupt_sign(conv: Bases) -> None:
    conv.signs[1, 1, 4, 2, 1] *= -1


def swap_planes(conv: Bases) -> None:
    conv.signs[[1, 2]] = conv.signs[[2, 1]]


def corrupt_offset(conv: Bases) -> None:
    conv.scale[0, 1, 2] *= np.float32(1.01)


def corrupt_shift(conv: Bases) -> None:
    conv.scale[2, 0, 2] *= np.float32(1.01)


@pytest.mark.parametrize("corrupt", [corrupt_weight, corrupt_sign, swap_planes, corrupt_offset, corrupt_shift])
def test_a_corruption_is_noticed_everywhere(corrupt: Callable[[Bases], None]) -> None:
    conv = Bases(Conv(40, 6, (3, 3), (4, 5), pads=(1, 1, 1, 1)))
    expected = conv.expected()
    corrupt(conv)
    model, x = conv.model(), conv.x()
    assert nowhere_equal(run_bodies(model, x), expected)
    assert nowhere_equal(run_kernels(model, x), expected)


def refusal(attributes: dict[str, object] | None = None, **constants: NDArray[np.generic]) -> str:
    conv = Bases(Conv(20, 8, (3, 3), (5, 5), batch=1), (2, 2))
    given = {name: value for name, value in (conv.attributes() | (attributes or {})).items() if value is not None}
    return error("BinaryConvBases", conv.x(), conv.constants() | constants, given)


def test_the_base_case_runs() -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        refusal()


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"planes": None}, "attribute planes is missing: it is a required int"),
        ({"planes": 5}, "attribute planes = 5: it must be in 1 to 4"),
        ({"bases": 0}, "attribute bases = 0: it must be in 1 to 4"),
        ({"bases": 3}, "need [output channels, kernel_shape..., bases * ceil(20 / 32) = 3]"),
        ({"planes": 1}, "input scale has shape [3, 3, 8], but it must be [planes + 1, bases + 1, output channels]"),
    ],
)
def test_wrong_attributes(attributes: dict[str, object], text: str) -> None:
    assert text in refusal(attributes)


def test_wrong_constants() -> None:
    assert "input bias has shape [7], but W has 8 output channels and needs [8]" in refusal(bias=np.ones(7, np.float32))
    unused = np.zeros((8, 3, 3, 2), np.uint32)
    unused[5, 2, 1, 1] = 1 << 20
    assert "input W has bits set beyond channel 19 (output channel 5)" in refusal(W=unused)
