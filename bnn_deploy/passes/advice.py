"""What a user can change so that a layer need not stay float: an advice for each reason that the passes give."""

from __future__ import annotations

import re

REAL_INPUT = r"its input is real-valued"

EDGES = "--edges int8 --calibration FILE stores it in 8 bits"

ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"the model's real-valued input",
        f"as in the papers, whose first layers stay float; {EDGES}",
    ),
    (
        REAL_INPUT,
        f"if it is to be binary, put a sign in front of it and train again; {EDGES}",
    ),
    (
        r"its weights are real-valued",
        "if they are latent, say by which recipe they are binarised: --weights xnor, xnor-centred or sign (for a "
        "checkpoint that this does not change, convert the file that --float writes); trained real, they stay float",
    ),
    (
        r"exactly 0, which one bit cannot hold",
        "train so that no weight is 0: with sign(0) = +1, those of the latent ones that are 0 become +alpha; a network "
        "of ternary weights has no binary form",
    ),
    (r"holds NaN or infinity", "training diverged, or the file is damaged: take another checkpoint"),
    (
        r"its (weights|bias) (are|is) not constant",
        "export with the parameters as initializers, computed from nothing but constants",
    ),
    (r"its weights are \w+, not float32", "convert the float model to float32 first"),
    (r"auto_pad", "export with explicit pads, or give the input's size with --input-shape"),
    (
        r"spatial dimensions; BinaryConv has 1 or 2",
        "write it as convolutions or a linear layer of at most 2 dimensions",
    ),
    (
        r"its weights have \d+ dimensions, not 2",
        "reshape its weights to [inputs, outputs], its input to [N, inputs]",
    ),
    (r"alpha, beta or transA", "multiply alpha and beta into the weights and the bias, and leave out transA"),
    (r"its bias has shape", "give it a bias of one value per output"),
    (r"the shape of its input is unknown", "export with fixed sizes besides the batch, or give --input-shape"),
    (r"has an index output or auto_pad", "export the MaxPool with explicit pads and without its index output"),
    (r"a linear layer's has 2", "flatten its input to [N, features] in front of the layer"),
    (
        r"its weight( is for)? \d+$",
        "the sizes contradict each other: export again with the right input shape",
    ),
    (r"it flattens \d+ spatial dimensions", "flatten maps of at most 2 spatial dimensions in front of the layer"),
    (r"exact sums need fewer than", "split the layer along its input channels into several that are added"),
    (r"times the magnitude of the signs", "pad with 0, or with plus or minus the magnitude of the signs"),
    (r"which cannot be mixed", "pad in one place: in the convolution with 0, or by a Pad with one value"),
    (r"another mode than constant", "pad with a constant: reflected or repeated borders have no binary form"),
    (r"pads channels, or stands between", "pad right in front of the convolution, in height and width alone"),
    (r"is 0 in channel \d+ and ±1 in others", "pad behind the sign, or with a sign that gives +1 at 0"),
    (
        r"which no pass looks through",
        "take the sign behind that operator, right in front of the layer, which computes the same",
    ),
    (r"gives 0 and 1, not -1 and 1", f"train with a sign of -1 and +1, of the data before the ReLU; {EDGES}"),
    (
        r"levels, but does not rise|from 0 up can be|not evenly spaced",
        f"train with evenly spaced levels from 0 up; {EDGES}",
    ),
    (r"K of XNOR-Net", "nothing: it has one channel, and costs little"),
    (r"has no binary operator", "write it as a Conv, Gemm or MatMul with constant weights"),
)
"""Pairs of a regular expression and the advice for the reasons that it finds; the first that finds something counts."""

LAST = f"as in the papers, whose last layers stay float; {EDGES}"

UNKNOWN = "if it was binary in training, report it with the model: the converter should know this form"


def advice(reason: str, last: bool = False) -> str:
    """What to do about the reason for which a layer stays float.

    Args:
        reason: as a pass or the audit gives it.
        last: whether no other layer comes after it.

    Returns:
        The advice; UNKNOWN for a reason that nobody wrote one for.
    """
    for pattern, text in ADVICE:
        if re.search(pattern, reason):
            return LAST if last and pattern == REAL_INPUT else text
    return UNKNOWN
