"""What the page says of a record: sentences, key figures and the rows of the network. The template lays it out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from bnn_deploy.page.graph import Node, Row, rows, without_constants
from bnn_deploy.provenance import read_classes
from bnn_deploy.quantities import TIMES, human_bytes, human_count, milliseconds, percent, plural, shape_text

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What came of it, in words.

    Attributes:
        kind: "good", "bad" or "open".
        title: one sentence.
        text: further sentences.
        failures: one line for each.
    """

    kind: str
    title: str
    text: tuple[str, ...]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Missing:
    """What the record lacks, and the command that adds it."""

    what: str
    command: str


@dataclass(frozen=True)
class Figure:
    """A key figure: a name, a value, and a remark below."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class LayerRow:
    """A row of the network.

    Attributes:
        number: its number; None for inputs and outputs.
        name: of the node, the input or the output.
        operator: its operator, "input" or "output".
        makes: what its outputs hold: "bits", "floats" (or integers), or "both".
        output: shape and type of the first one, for readers.
        rail: the lines beside it, see `graph`.
        state: "equal", "rounding", "failed" or "" for one that was not compared.
        said: the same in words.
        ms: its time; None if it was not measured.
        share: its share of all nodes' time; 0 likewise.
        facts: further names and values.
    """

    number: int | None
    name: str
    operator: str
    makes: str
    output: str
    rail: Row
    state: str = ""
    said: str = ""
    ms: float | None = None
    share: float = 0.0
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class NetworkView:
    """The rows from the inputs to the outputs.

    Attributes:
        rows: see `LayerRow`.
        lanes: the number of lanes beside them.
        bits: the names of the tensors that hold bits.
    """

    rows: tuple[LayerRow, ...] = ()
    lanes: int = 0
    bits: frozenset[str] = field(default_factory=frozenset)


def name_of(record: Json) -> str:
    """The model's file name, or its hash if no part says it."""
    for part in ("model", "verification", "golden", "profile"):
        found = record[part]
        if found is not None:
            return PurePath(found["path"] if part == "model" else _profiled(found)).name
    return PurePath((record["conversion"] or {}).get("output") or record["sha256"][:12]).name


def _profiled(part: Json) -> str:
    model = part["model"]
    return str(model if isinstance(model, str) else model["path"])


def verdict(record: Json) -> Verdict:
    """Whether the model is equivalent, and what it gains, in sentences."""
    proof, golden = record["verification"], record["golden"]
    gains = tuple(filter(None, (_accuracy_text(proof), _size_text(record), _speed_text(record["profile"]))))
    failures = tuple(failure for part in (proof, golden) if part is not None for failure in part["failures"])
    # What failed comes before what passed: of a proof on a laptop and golden results on a board, either may fail alone.
    if proof is not None and proof["interrupted"]:
        return Verdict("bad", "Not verified to the end: verify was interrupted.", gains, failures)
    if proof is not None and not proof["passed"]:
        return Verdict("bad", "Not equivalent: verify FAILED.", gains, failures)
    if golden is not None and not golden["passed"]:
        title = "The board does not compute what the machine that made the bundle computed."
        return Verdict("bad", title, gains, failures)
    if proof is not None and proof["complete"]:
        return Verdict("good", "Equivalent: the model computes what its source computes.", gains)
    if proof is not None:
        title = "The outputs are those of the source; layers were not compared."
        return Verdict("good", title, gains)
    if golden is not None:
        title = "The board computes, bit by bit, what the machine that made the bundle computed."
        return Verdict("good", title, gains)
    title = "Not verified: nothing here shows that the model computes what its source computes."
    return Verdict("open", title, gains)


def kernels_output(proof: Json | None) -> Json | None:
    """The first output of the kernels that ran free, or of the function bodies if there are none."""
    outputs: list[Json] = proof["outputs"] if proof is not None else []
    kernels = [output for output in outputs if output["backend"].startswith("kernels")]
    return next(iter(kernels or outputs), None)


def _accuracy_text(proof: Json | None) -> str:
    output = kernels_output(proof)
    if proof is None or output is None:
        return ""
    samples = output["samples"]
    if output["same_class"] is None:
        return f"{output['agreeing']:,} of {plural(samples, 'sample')} agree with the source."
    text = f"Source and model predict the same class for {output['same_class']:,} of {plural(samples, 'sample')}"
    if output["correct"] is not None and output["reference_correct"] is not None:
        before, after = (percent(output[key], samples) for key in ("reference_correct", "correct"))
        text += f"; {before} of the source's predictions are right, and {after} of the model's"
    return f"{text}."


def _compared(profile: Json | None) -> tuple[str, Json] | None:
    """The file name and the measurements of the first compared model, which need not be the float one."""
    first = next(iter(profile["compare"]), None) if profile is not None else None
    return None if first is None else (PurePath(first["path"]).name, first)


def _file_sizes(record: Json) -> tuple[str, int | None, int | None]:
    """What the converted model's file is compared with, the bytes of that, and its own."""
    conversion, profile, model = record["conversion"] or {}, record["profile"], record["model"]
    own = next((part["file_bytes"] for part in (model, (profile or {}).get("model")) if part is not None), None)
    if conversion.get("before"):
        return "the float model", conversion["before"]["file_bytes"], own
    name, other = _compared(profile) or ("", {})
    return name, other.get("file_bytes"), own


def _size_text(record: Json) -> str:
    name, before, after = _file_sizes(record)
    if not before or not after:
        return ""
    how = f"{before / after:.1f}{TIMES} smaller" if before >= after else f"{after / before:.2f}{TIMES} larger"
    return f"Its file is {how} than that of {name}: {human_bytes(after)} instead of {human_bytes(before)}."


def _speed_text(profile: Json | None) -> str:
    if profile is None:
        return ""
    threads = plural(profile["threads"], "thread")
    took = f"It takes {milliseconds(profile['model']['timing']['median_ms'])} ms for a batch of {profile['batch']}"
    compared = _compared(profile)
    if compared is None:
        return f"{took} on {threads}."
    ratio = profile["speedup"]["median"]
    how = f"{ratio:.2f}{TIMES} as fast as" if ratio >= 1 else f"{1 / ratio:.2f}{TIMES} slower than"
    doubt = " The measurement was disturbed, see below." if disturbed(profile) else ""
    return f"{took}, {how} {compared[0]} in onnxruntime alone, on {threads}.{doubt}"


def disturbed(profile: Json) -> bool:
    """Whether the times of a profile are not to be relied upon."""
    return bool(profile["noisy"] or profile["throttled"])


def figures(record: Json) -> list[Figure]:
    """The key figures that the record has."""
    result = []
    output, profile = kernels_output(record["verification"]), record["profile"]
    name, before, after = _file_sizes(record)
    if output is not None and output["correct"] is not None:
        own = percent(output["correct"], output["samples"])
        source = percent(output["reference_correct"], output["samples"])
        result.append(Figure("Accuracy", own, f"{source} of the source, on {plural(output['samples'], 'sample')}"))
    elif output is not None and output["same_class"] is not None:
        share = percent(output["same_class"], output["samples"])
        result.append(Figure("Same class", share, f"as the source, on {plural(output['samples'], 'sample')}"))
    if after:
        instead = f"{human_bytes(before)}: {name}" if before else ""
        result.append(Figure("File", human_bytes(after), instead))
    if profile is not None:
        timing, compared = profile["model"]["timing"], _compared(profile)
        instead = "" if compared is None else f"{milliseconds(compared[1]['timing']['median_ms'])} ms: {compared[0]}"
        result.append(Figure("Time per run", f"{milliseconds(timing['median_ms'])} ms", instead))
        speedup = profile["speedup"]
        if speedup is not None:
            value = f"{speedup['median']:.2f}{TIMES}"
            result.append(
                Figure("Speed-up, disturbed" if disturbed(profile) else "Speed-up", value, _interval(speedup))
            )
    return result


def _interval(speedup: Json) -> str:
    """How sure a speed-up is."""
    if speedup["low"] is not None:
        return f"{speedup['low']:.2f} to {speedup['high']:.2f}{TIMES} with 95 % confidence"
    return f"{speedup['p10']:.2f} to {speedup['p90']:.2f}{TIMES} over pairs of runs"


def missing(record: Json) -> list[Missing]:
    """What the record lacks, and the commands that add it."""
    name, result = shlex.quote(name_of(record)), []
    proof = record["verification"]
    if record["model"] is None:
        result.append(
            Missing("the network, its shapes and sizes", f"bnn-deploy report RECORD.json {name} -o FILE.html")
        )
    if proof is None:
        command = f"bnn-deploy report {name} --against SOURCE --data FILE -o FILE.html"
        result.append(Missing("the proof against its source, layer by layer", command))
    elif (output := kernels_output(proof)) is not None and output["correct"] is None:
        command = f"bnn-deploy report {name} --against SOURCE --data FILE_WITH_LABELS -o FILE.html"
        result.append(Missing("accuracy", command))
    if record["profile"] is None:
        command = f"bnn-deploy report {name} --compare FLOAT.onnx -o FILE.html"
        result.append(Missing("time, memory and the float model's", command))
    if record["conversion"] is None:
        command = f"bnn-deploy convert SOURCE -o {name} --json > convert.json"
        result.append(Missing("what became of each layer of the source, and its size before", command))
    return result


def network(record: Json) -> NetworkView:
    """The rows of the network; none if the record has no part `model`."""
    model = record["model"]
    if model is None:
        return NetworkView()
    inputs = [tensor["name"] for tensor in model["inputs"]]
    all_nodes = [Node(tuple(layer["reads"]), tuple(layer["writes"])) for layer in model["layers"]]
    kept = without_constants(all_nodes, inputs)
    layers = [layer for layer, keep in zip(model["layers"], kept, strict=True) if keep]
    nodes = [
        *(Node((), (name,)) for name in inputs),
        *(node for node, keep in zip(all_nodes, kept, strict=True) if keep),
        *(Node((tensor["name"],), ()) for tensor in model["outputs"]),
    ]
    rails = rows(nodes)
    found = (record["verification"] or {}).get("layers", [])
    proofs: dict[str, Json] = {}
    # A node with two outputs is compared in both: the worse one is shown.
    for proof in sorted(found, key=lambda proof: _STATES.index(_state(proof)[0])):
        proofs |= dict.fromkeys((proof["source"], *proof["layer"].split(" + ")), proof)
    times = {node["name"]: node for node in (record["profile"] or {}).get("model", {}).get("nodes", [])}
    became = {layer["name"]: layer for layer in (record["conversion"] or {}).get("layers", [])}
    batch = _batch(model)
    result = [
        LayerRow(None, tensor["name"], kind, "floats", _tensor_text(tensor, batch), rail)
        for kind, tensors, own in (
            ("input", model["inputs"], rails[: len(inputs)]),
            ("output", model["outputs"], rails[len(inputs) + len(layers) :]),
        )
        for tensor, rail in zip(tensors, own, strict=True)
    ]
    middle = []
    for i, (layer, rail) in enumerate(zip(layers, rails[len(inputs) :], strict=False), 1):
        proof, time = proofs.get(layer["name"], proofs.get(layer["source"])), times.get(layer["name"])
        state, said = _state(proof)
        middle.append(
            LayerRow(
                i,
                layer["name"],
                layer["op_type"],
                _makes(layer),
                _output_text(layer, batch),
                rail,
                state,
                said,
                None if time is None else time["median_ms"],
                0.0 if time is None else time["share"],
                tuple(_facts(layer, proof, became.get(layer["name"]))),
            )
        )
    result[len(inputs) : len(inputs)] = middle
    bits = frozenset(name for layer in layers for name in layer["writes_bits"])
    return NetworkView(tuple(result), max((rail.width for rail in rails), default=0), bits)


def _makes(layer: Json) -> str:
    """What the outputs of a layer hold."""
    bits = len(layer["writes_bits"])
    return "floats" if not bits else "bits" if bits == len(layer["writes"]) else "both"


def _batch(model: Json) -> str | None:
    """The symbolic name of the batch dimension."""
    shape = model["inputs"][0]["shape"] if model["inputs"] else None
    return shape[0] if shape and isinstance(shape[0], str) else None


def _shape(shape: Sequence[int | str | None] | None, batch: str | None) -> list[int | str | None] | None:
    return None if shape is None else ["N" if size == batch and batch is not None else size for size in shape]


def _tensor_text(tensor: Json, batch: str | None) -> str:
    return f"{shape_text(_shape(tensor['shape'], batch))} {tensor['dtype'] or ''}".rstrip()


def _output_text(layer: Json, batch: str | None) -> str:
    """Shape and type of a layer's output; of bits with channels instead of words: 40 channels, not 2 words."""
    shape = _shape(layer["output"]["shape"], batch)
    if shape is None or layer["output_bits"] is None:
        return _tensor_text(layer["output"], batch)
    return f"{shape_text([*shape[:-1], layer['output_bits']])} bits"


_STATES = ("", "equal", "rounding", "failed")
"""From the best to the worst."""


def _state(proof: Json | None) -> tuple[str, str]:
    """The state of a layer, and the same in words."""
    if proof is None:
        return "", ""
    if not proof["passed"]:
        return "failed", "FAILED"
    if proof["kind"] == "floats":
        error = proof["relative_error"]
        return ("rounding", f"within {error:.1e}") if error else ("equal", "equal")
    flips = proof["differing"]
    return ("rounding", f"{plural(flips, 'bit')} by rounding") if flips else ("equal", "equal")


def _facts(layer: Json, proof: Json | None, became: Json | None) -> list[tuple[str, str]]:
    """What else is known of a layer."""
    macs = [f"{human_count(layer[key])} {kind}" for kind in ("binary", "float") if layer[key := f"{kind}_macs"]]
    result = [
        ("kernel", shape_text(layer["kernel_shape"]) if layer["kernel_shape"] else ""),
        *((name, _numbers(layer[name])) for name in ("strides", "pads", "dilations")),
        ("groups", str(layer["group"]) if (layer["group"] or 1) > 1 else ""),
        ("max pool behind", shape_text(layer["pool_shape"]) if layer["pool_shape"] else ""),
        ("multiply-accumulates", ", ".join(macs)),
        ("constants", human_bytes(layer["constant_bytes"]) if layer["constant_bytes"] else ""),
        ("tensor of the source", layer["source"] or ""),
    ]
    if became is not None:
        scale = became["scale"]
        result += [
            ("was", f"{became['operator']}, {became['status']}"),
            ("activation", became["activation"] or ""),
            ("weights", became["weights"]),
            ("scale", "" if scale is None or list(scale) == [1, 1] else f"{scale[0]:.3g} to {scale[1]:.3g}"),
            ("fused in front", ", ".join(became["binarisation"])),
            ("fused behind", ", ".join(became["fused"])),
            ("why it is not binary", became["reason"] or ""),
            ("what could be changed", became["advice"] or ""),
        ]
    if proof is not None:
        compared = f"{proof['values']:,} {proof['kind']} per backend"
        result += [
            ("compared", compared + (", int8" if proof["quantized"] else "")),
            ("worst", proof["worst"]),
            ("error", proof["error"]),
        ]
    return [(name, value) for name, value in result if value]


def _numbers(values: Sequence[int] | None) -> str:
    return "" if not values else str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def no_flips(record: Json) -> bool:
    """Whether layers with bits were compared, and no bit differs."""
    layers = [layer for layer in (record["verification"] or {}).get("layers", []) if layer["kind"] != "floats"]
    return bool(layers) and not any(layer["differing"] for layer in layers)


def operators(record: Json) -> dict[str, int]:
    """Of the first question of the proof: the nodes that differ, the values compared and those within rounding.

    The values are those of a backend, the ReferenceEvaluator excepted, which runs fewer; those within rounding are of
    all backends.
    """
    found = (record["verification"] or {}).get("operators", [])
    return {
        "differing": sum(any(operator["differing"].values()) for operator in found),
        "compared": sum(operator["values"] for operator in found),
        "rounded": sum(sum(operator["rounded"].values()) for operator in found),
    }


def settings(record: Json) -> list[Json]:
    """The times of all models in all settings, if there are several: the path, and the entries of each timing."""
    found: list[Json] = [{"path": item["path"], **timing} for item in models(record) for timing in item["timings"]]
    return found if len(found) > len(models(record)) else []


def models(record: Json) -> list[Json]:
    """The models that were measured, that of the record first."""
    profile = record["profile"]
    return [] if profile is None else [profile["model"], *profile["compare"]]


def waterfall(record: Json) -> list[dict[str, Any]]:
    """The nodes as they run, one after the other; `start` is their place in the run, from 0 to 1."""
    if record["profile"] is None:
        return []
    result, start = [], 0.0
    for node in record["profile"]["model"]["nodes"]:
        result.append(
            {
                "name": node["name"],
                "op_type": node["op_type"],
                "ms": node["median_ms"],
                "share": node["share"],
                "start": start,
                "kind": "bits" if node["kind"] in ("binary layer", "bit operator") else "",
                "rate": "" if node["gmacs_per_second"] is None else f"{node['gmacs_per_second']:,.1f}",
                "bound_share": "" if node["bound_share"] is None else f"{node['bound_share']:.0%}",
            }
        )
        start += node["share"]
    return result


def layer_sizes(record: Json) -> dict[str, dict[str, float]]:
    """Layer of the source -> its bytes before and after, and both as shares of the largest."""
    before, model = (record["conversion"] or {}).get("before"), record["model"]
    if before is None or model is None:
        return {}
    old = {layer["name"]: layer["constant_bytes"] for layer in before["layers"]}
    new: dict[str, int] = {}
    for layer in model["layers"]:
        name = layer["part_of"] or layer["name"]
        new[name] = new.get(name, 0) + layer["constant_bytes"]
    names = [layer["name"] for layer in record["conversion"]["layers"] if layer["name"] in old.keys() & new.keys()]
    largest = max((max(old[name], new[name]) for name in names), default=0) or 1
    return {
        name: {
            "before": old[name],
            "after": new[name],
            "before_share": old[name] / largest,
            "after_share": new[name] / largest,
        }
        for name in names
    }


def reasons(record: Json) -> list[dict[str, Any]]:
    """Why layers stayed float, each reason once: reason, advice and the names of the layers."""
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in (record["conversion"] or {}).get("layers", []):
        if layer["reason"] is not None:
            groups.setdefault((layer["reason"], layer["advice"] or ""), []).append(layer["name"])
    return [{"reason": reason, "advice": advice, "layers": names} for (reason, advice), names in groups.items()]


def class_names(record: Json) -> Sequence[str]:
    """The names of the classes: those of the data, or those that the model remembers."""
    told: Sequence[str] = (record["verification"] or {}).get("class_names", [])
    return told or read_classes((record["model"] or {}).get("metadata", {}))


def class_table(record: Json) -> list[dict[str, Any]]:
    """Of each class: name, samples, and the shares that source and model get right."""
    found = (record["verification"] or {}).get("classification", [])
    by_network = {entry["network"]: {item["label"]: item for item in entry["classes"]} for entry in found}
    source, model = by_network.get("reference", {}), by_network.get("model", {})
    names = class_names(record)
    return [
        {
            "name": item["name"] or (names[label] if 0 <= label < len(names) else str(label)),
            "samples": item["samples"],
            "source": source[label]["correct"] if label in source else None,
            "model": item["correct"],
        }
        for label, item in model.items()
    ]


MOST_CLASSES = 20
"""Of a confusion matrix that is shown whole; of more classes, the commonest confusions are listed."""


def confusion(record: Json) -> dict[str, Any] | None:
    """The model's confusion matrix: `names`, and `rows` of [count, share of the row] pairs; None without labels.

    Of more than MOST_CLASSES classes: `pairs`, the commonest confusions as (label, predicted, count).
    """
    proof = record["verification"] or {}
    found = next((entry for entry in proof.get("classification", []) if entry["network"] == "model"), None)
    if found is None:
        return None
    told = class_names(record)
    counts = {(label, predicted): count for label, predicted, count in found["confusion"]}
    classes = sorted({number for pair in counts for number in pair})

    def name(number: int) -> str:
        return told[number] if 0 <= number < len(told) else str(number)

    if len(classes) > MOST_CLASSES:
        wrong = sorted(((count, *pair) for pair, count in counts.items() if pair[0] != pair[1]), reverse=True)
        return {"pairs": [(name(label), name(predicted), count) for count, label, predicted in wrong[:10]]}
    rows = []
    for label in classes:
        row = [counts.get((label, predicted), 0) for predicted in classes]
        rows.append([(count, count / (sum(row) or 1)) for count in row])
    return {"names": [name(number) for number in classes], "rows": rows}


_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


def samples(record: Json, kind: str, most: int = 12) -> list[dict[str, Any]]:
    """Samples with what is told of each: of `kind` "worst" or "disagreements", each sample once.

    Of each: `sample`, `file`, `picture` (PNG in base64, or ""), `label`, `source` and `model` (class names, or ""), and
    the entry itself as `told`.
    """
    proof = record["verification"] or {}
    names, pictures = class_names(record), proof.get("pictures", {})

    def name(number: int | None) -> str:
        return "" if number is None else names[number] if 0 <= number < len(names) else str(number)

    found: dict[int, dict[str, Any]] = {}
    for told in proof.get(kind, []):
        found.setdefault(
            told["sample"],
            {
                "sample": told["sample"],
                "file": told.get("file", ""),
                "picture": picture if _BASE64.fullmatch(picture := pictures.get(str(told["sample"]), "")) else "",
                "label": name(told.get("label")),
                "source": name(told["reference_class"]),
                "model": name(told["model_class"]),
                "told": told,
            },
        )
    return list(found.values())[:most]
