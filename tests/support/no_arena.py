"""A pytest plugin, for sanitizers: onnxruntime allocates each tensor alone.

By itself it takes tensors from an arena, or plans several into one block, where AddressSanitizer sees no end of one.
"""

from __future__ import annotations

from typing import Any

import onnxruntime as ort


class Session(ort.InferenceSession):
    def __init__(self, model: Any, sess_options: ort.SessionOptions | None = None, **more: Any) -> None:
        options = sess_options or ort.SessionOptions()
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        super().__init__(model, options, **more)


ort.InferenceSession = Session
