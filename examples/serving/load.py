"""Ask a server many times from several clients at once, and hold each answer against a session of one's own.

    python examples/serving/load.py nin_bytes.onnx images.npy

Speaks the Open Inference Protocol over HTTP, so the server may be MLServer, Triton or KServe. Waits for it to be ready.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.http as client

from bnn_deploy.runtime.session import load_session

READY_SECONDS = 60


def wait_until_ready(url: str, model: str) -> None:
    """Return as soon as the server answers that the model is ready."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        try:
            if client.InferenceServerClient(url).is_model_ready(model):
                return
        except OSError:  # nobody listens there yet
            pass
        time.sleep(0.2)
    raise SystemExit(f"error: no server has {model} ready at {url} after {READY_SECONDS} s")


def main() -> int:
    """Print the table; 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the converted model that the server runs")
    parser.add_argument("data", type=Path, help=".npy file with its inputs")
    parser.add_argument("--name", default="nin", help="of the model on the server")
    parser.add_argument("--url", default="localhost:8080")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000, help="of all clients together")
    arguments = parser.parse_args()

    session = load_session(arguments.model, threads=1)
    (takes,), (gives,) = session.get_inputs(), session.get_outputs()
    images = np.load(arguments.data)
    wanted = [session.run(None, {takes.name: images[i : i + 1]})[0] for i in range(len(images))]

    wait_until_ready(arguments.url, arguments.name)

    def one_client(number: int) -> list[tuple[float, bool]]:
        """The seconds that each request of a client took, and whether the answer was right, to the last bit."""
        server, found = client.InferenceServerClient(arguments.url), []
        for i in range(number, arguments.requests, arguments.clients):
            image = images[i % len(images)][np.newaxis]
            tensor = client.InferInput(takes.name, image.shape, "UINT8" if image.dtype == np.uint8 else "FP32")
            tensor.set_data_from_numpy(image, binary_data=False)  # MLServer's HTTP has no binary tensors
            output = client.InferRequestedOutput(gives.name, binary_data=False)
            start = time.perf_counter()
            answer = server.infer(arguments.name, [tensor], outputs=[output]).as_numpy(gives.name)
            found.append((time.perf_counter() - start, answer.tobytes() == wanted[i % len(images)].tobytes()))
        server.close()
        return found

    start = time.perf_counter()
    with ThreadPoolExecutor(arguments.clients) as pool:
        answers = [pair for found in pool.map(one_client, range(arguments.clients)) for pair in found]
    seconds = time.perf_counter() - start
    times = np.sort([1000 * taken for taken, _ in answers])
    right = sum(same for _, same in answers)
    print(f"requests       {len(answers):,} from {arguments.clients} clients")
    print(f"right answers  {right:,}, every bit as in a session here")
    print(f"per second     {len(answers) / seconds:,.0f}")
    for name, share in (("median", 50), ("p90", 90), ("p99", 99), ("slowest", 100)):
        print(f"{name:<15}{np.percentile(times, share):.1f} ms")
    return 0 if right == len(answers) == arguments.requests else 1


if __name__ == "__main__":
    raise SystemExit(main())
