"""A converted model in MLServer, which speaks the Open Inference Protocol over HTTP and gRPC, as KServe and Triton do.

pip install 'mlserver>=1.6'
mlserver start examples/serving    # with a model beside model-settings.json, see there
"""

import asyncio

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor
from mlserver.utils import get_model_uri

from bnn_deploy.runtime.session import load_session

DATATYPES = {"tensor(float)": ("FP32", np.float32), "tensor(uint8)": ("UINT8", np.uint8)}
"""onnxruntime's name of an element type -> the protocol's, and numpy's."""


class BinaryModel(MLModel):
    """One session with the operator library registered; onnxruntime lets many threads run it at once."""

    async def load(self) -> bool:
        """Make the session, and run it once, so that the first request does not wait for it."""
        self.session = load_session(await get_model_uri(self._settings), threads=1)
        self.inputs = [_metadata(tensor) for tensor in self.session.get_inputs()]
        self.outputs = [_metadata(tensor) for tensor in self.session.get_outputs()]
        self.session.run(None, {i.name: np.zeros([abs(n) for n in i.shape], _dtype(i)) for i in self.inputs})
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request, in a thread of its own: other requests are read meanwhile."""
        feed = {}
        for given in payload.inputs:
            wanted = next((i for i in self.inputs if i.name == given.name), None)
            if wanted is None or given.datatype != wanted.datatype or not _fits(given.shape, wanted.shape):
                takes = ", ".join(f"{i.name} {i.datatype} {i.shape}" for i in self.inputs)
                raise InferenceError(
                    f"input {given.name} {given.datatype} {given.shape}: {self.name} takes {takes}; -1 is any number"
                )
            feed[given.name] = NumpyCodec.decode_input(given).astype(_dtype(wanted), copy=False)
        results = await asyncio.to_thread(self.session.run, None, feed)
        outputs = [NumpyCodec.encode_output(o.name, array) for o, array in zip(self.outputs, results, strict=True)]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)


def _metadata(tensor) -> MetadataTensor:
    """What the protocol says of a tensor; an open dimension is -1."""
    return MetadataTensor(
        name=tensor.name,
        datatype=DATATYPES[tensor.type][0],
        shape=[size if isinstance(size, int) else -1 for size in tensor.shape],
    )


def _dtype(tensor: MetadataTensor) -> type[np.generic]:
    return dict(DATATYPES.values())[tensor.datatype]


def _fits(shape: list[int], wanted: list[int]) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, n) for n, w in zip(shape, wanted, strict=True))
