"""Say what a camera sees: the likeliest class of each frame, and the frames per second.

    python examples/camera/camera.py MODEL.onnx [SOURCE] [--threads N] [--period SECONDS] [--each]

MODEL takes colour images of bytes (bnn-deploy convert --input uint8 --layout nhwc). SOURCE is the number of a camera, 0
if left out, or the file or address of a video. The middle of a frame becomes the model's input: OpenCV resizes it and
turns blue, green, red into red, green, blue, and nothing else happens to its bytes.

Under systemd (camera.service) the program says when the first frame was classified, and then that it is alive: a camera
that hangs does not, and the watchdog starts the program again.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy import Classifier
from bnn_deploy.errors import BnnDeployError


def notify(state: str) -> None:
    """Tell systemd something: a datagram to the socket that it names, as sd_notify(3) describes."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            # A name that begins with @ is one of the abstract namespace.
            to.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def pinned(threads: int) -> tuple[ort.SessionOptions, int]:
    """Session options that keep each thread but the first on a CPU of its own, and the CPU for the first one."""
    cpus = sorted(os.sched_getaffinity(0))
    if threads > len(cpus):
        raise SystemExit(f"error: {threads} threads, and this process may use {len(cpus)} CPUs: give --threads")
    options = ort.SessionOptions()
    if threads > 1:
        others = ";".join(str(cpu + 1) for cpu in cpus[1:threads])  # onnxruntime counts CPUs from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
    return options, cpus[0]


def middle(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle of a frame [H, W, 3] of blue, green, red as a picture [height, width, 3] of red, green, blue."""
    scale = min(frame.shape[0] / height, frame.shape[1] / width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (frame.shape[0] - rows) // 2, (frame.shape[1] - columns) // 2
    part = frame[top : top + rows, left : left + columns]
    if part.shape[:2] != (height, width):
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(part, cv2.COLOR_BGR2RGB)


def run(model: str, source: str, threads: int, period: float, each: bool) -> int:
    """Classify all frames of a source, and return how many there were."""
    options, cpu = pinned(threads)
    classifier = Classifier(model, threads, options=options)
    os.sched_setaffinity(0, {cpu})
    session = classifier.session
    (given,) = session.get_inputs()
    _, height, width, channels = given.shape if len(given.shape) == 4 else (None,) * 4
    if given.type != "tensor(uint8)" or channels != 3 or not isinstance(height, int) or not isinstance(width, int):
        raise SystemExit(
            f"error: {model}: takes no colour images of bytes of one size: convert it with --input uint8 --layout nhwc"
        )

    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        raise SystemExit(f"error: {source}: OpenCV opens no camera and no video of this name")
    count, since, at_that_time = 0, time.monotonic(), 0
    while True:
        good, frame = camera.read()
        if not good:
            return count
        (scores,) = session.run(None, {given.name: middle(frame, height, width)[np.newaxis]})
        best = int(np.argmax(scores[0]))
        label = classifier.classes[best] if classifier.classes else str(best)
        if not count:
            notify("READY=1")
        if each:
            print(f"{count}\t{label}", flush=True)
        count += 1
        if (seconds := time.monotonic() - since) >= period:
            notify("WATCHDOG=1")
            rate = (count - at_that_time) / seconds
            print(f"{label}, {rate:.1f} frames per second", file=sys.stderr, flush=True)
            since, at_that_time = time.monotonic(), count


def main() -> int:
    """Run the command line; a camera that stops is an error, and the end of a video is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("source", nargs="?", default="0", metavar="SOURCE")
    parser.add_argument("--threads", type=int, default=1, help="each on a CPU of its own (default: 1)")
    parser.add_argument(
        "--period", type=float, default=1, metavar="SECONDS", help="between two lines, and signs of life (default: 1)"
    )
    parser.add_argument("--each", action="store_true", help="print the class of each frame on stdout, too")
    args = parser.parse_args()
    try:
        count = run(args.model, args.source, args.threads, args.period, args.each)
    except BnnDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.source.isdigit() or not count:
        print(f"error: {args.source}: gave no {'further ' if count else ''}frame", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
