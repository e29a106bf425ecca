"""Say what a camera sees: the likeliest class of each frame, and the frames per second.

    python -m bnn_deploy.apps.camera MODEL.onnx [SOURCE] [--threads N] [--period SECONDS] [--each]

MODEL takes colour images of bytes (bnn-deploy convert --input uint8 --layout nhwc). SOURCE is the number of a camera, 0
if left out, or the file or address of a video. The middle of a frame becomes the model's input: OpenCV resizes it and
turns blue, green, red into red, green, blue, and nothing else happens to its bytes.

Under systemd the program says when the first frame was classified, and then that it is alive: a camera that hangs does
not, and the watchdog starts the program again.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.apps.program import OptionParser, notify, option_parser, run_program, seconds
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.installation import install_command
from bnn_deploy.runtime.classifier import Classifier
from bnn_deploy.system import cpu_numbers, stay_on


def parser() -> OptionParser:
    """The program's options."""
    result = option_parser("camera", __doc__)
    result.add_argument("source", nargs="?", default="0", metavar="SOURCE")
    result.add_argument(
        "--period",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="between two lines, and signs of life (default: 1)",
    )
    result.add_argument("--each", action="store_true", help="print the class of each frame on stdout, too")
    return result


def frame_size(model: str, classifier: Classifier) -> tuple[int, int]:
    """Height and width of the model's input.

    Raises:
        InputError: the model takes no colour images of bytes, with the channels last.
    """
    (given,) = classifier.session.get_inputs()
    _, height, width, channels = given.shape if len(given.shape) == 4 else (None,) * 4
    if given.type != "tensor(uint8)" or channels != 3 or not isinstance(height, int) or not isinstance(width, int):
        raise InputError(
            f"{model}: takes no colour images of bytes of one size: convert it with --input uint8 --layout nhwc"
        )
    return height, width


def require_fit(model: str) -> None:
    """Check that the program can use a model.

    Raises:
        InputError: it cannot.
    """
    frame_size(model, Classifier(model))


def pinned(threads: int) -> tuple[ort.SessionOptions, int]:
    """Session options that keep each thread but the first on a CPU of its own, and the CPU for the first one."""
    cpus = cpu_numbers()
    if threads > len(cpus):
        raise InputError(f"{threads} threads, and this process may use {len(cpus)} CPUs: give --threads")
    options = ort.SessionOptions()
    if threads > 1:
        others = ";".join(str(cpu + 1) for cpu in cpus[1:threads])  # onnxruntime counts CPUs from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
    return options, cpus[0]


def middle(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle of a frame [H, W, 3] of blue, green, red as a picture [height, width, 3] of red, green, blue."""
    cv2 = _require_opencv()
    scale = min(frame.shape[0] / height, frame.shape[1] / width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (frame.shape[0] - rows) // 2, (frame.shape[1] - columns) // 2
    part = frame[top : top + rows, left : left + columns]
    if part.shape[:2] != (height, width):
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    picture: NDArray[np.uint8] = cv2.cvtColor(part, cv2.COLOR_BGR2RGB)
    return picture


def _require_opencv() -> Any:
    """The module cv2."""
    try:
        import cv2
    except ImportError:
        raise SetupError(f"frames are read with OpenCV, which is not installed: {install_command('camera')}") from None
    return cv2


def classify_frames(model: str, source: str, threads: int, period: float, each: bool) -> int:
    """Classify all frames of a source, and return how many there were."""
    cv2 = _require_opencv()
    options, cpu = pinned(threads)
    classifier = Classifier(model, threads, options=options)
    stay_on(cpu)
    session = classifier.session
    height, width = frame_size(model, classifier)
    name = session.get_inputs()[0].name

    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        raise SetupError(f"{source}: OpenCV opens no camera and no video of this name")
    count, since, at_that_time = 0, time.monotonic(), 0
    while True:
        good, frame = camera.read()
        if not good:
            return count
        (scores,) = session.run(None, {name: middle(frame, height, width)[np.newaxis]})
        best = int(np.argmax(scores[0]))
        label = classifier.classes[best] if classifier.classes else str(best)
        if not count:
            notify("READY=1")
        if each:
            print(f"{count}\t{label}", flush=True)
        count += 1
        if (passed := time.monotonic() - since) >= period:
            notify("WATCHDOG=1")
            rate = (count - at_that_time) / passed
            print(f"{label}, {rate:.1f} frames per second", file=sys.stderr, flush=True)
            since, at_that_time = time.monotonic(), count


def run(args: argparse.Namespace) -> int:
    """Run the program; a camera that stops is an error, and the end of a video is none."""
    count = classify_frames(args.model, args.source, args.threads, args.period, args.each)
    if args.source.isdigit() or not count:
        print(f"error: {args.source}: gave no {'further ' if count else ''}frame", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_program(parser(), run))
