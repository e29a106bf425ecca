"""The runs of nodes as a trace that Perfetto and Chrome show.

The form is the Trace Event Format ("JSON Object Format"): complete events (phase X) have a name, a begin `ts` and a
duration `dur` in µs, a process and a thread; metadata events (phase M) name these. onnxruntime writes its profile so,
but for the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnn_deploy.runtime.node_times import Event, is_kernel, node_name

_ARGUMENTS = ("op_name", "input_type_shape", "output_type_shape", "activation_size", "parameter_size", "output_size")
"""The arguments of a node's event that are kept: operator, types and shapes, bytes."""


def trace_events(profiles: Sequence[tuple[str, Sequence[Event]]]) -> dict[str, Any]:
    """Put the profiles of several models into one trace: a process per model, each from the start of its session.

    Args:
        profiles: path of each model, and the events of its profile.
    """
    events: list[Event] = []
    for process, (path, profile) in enumerate(profiles, 1):
        events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": Path(path).name}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}})
        threads = {thread: i for i, thread in enumerate(dict.fromkeys(event["tid"] for event in profile), 1)}
        for event in _nested(profile):
            if event.get("cat") == "Node" and not is_kernel(event):
                continue  # the fences around a node, which older versions note
            node = is_kernel(event)
            args = event.get("args", {})
            events.append(
                {
                    "ph": "X",
                    "name": node_name(event) if node else event["name"],
                    "cat": "node" if node else "session",
                    "ts": event["ts"],
                    "dur": event["dur"],
                    "pid": process,
                    "tid": threads[event["tid"]],
                    "args": {key: args[key] for key in _ARGUMENTS if key in args},
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _nested(profile: Sequence[Event]) -> list[Event]:
    """The events in the order of their begin, each ending no later than the one of its thread that it is within.

    Begins and durations are cut to whole microseconds each, so that an end may come out behind the end of what holds
    it. Complete events may only be within or behind each other, and Perfetto drops those that overlap.
    """
    result = []
    ends: dict[Any, list[int]] = {}  # of the events of a thread that hold what comes next, the innermost one last
    for event in sorted(profile, key=lambda event: (event["ts"], -event["dur"])):
        outer = ends.setdefault(event["tid"], [])
        while outer and outer[-1] <= event["ts"]:
            outer.pop()
        outer.append(min([event["ts"] + event["dur"], *outer[-1:]]))
        result.append({**event, "dur": outer[-1] - event["ts"]})
    return result
