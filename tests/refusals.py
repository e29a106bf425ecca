"""Ways to break a checkpoint or a graph, and the one line with which `convert` refuses each.

python tests/refusals.py        # prints all the lines
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from click.testing import CliRunner, Result
from onnx import ModelProto, TensorProto, helper

from bnn_deploy.architectures import LeNet5
from bnn_deploy.cli import main
from support.graphs import batch_norm, parse, weights

Arguments = list[Any]


@dataclass(frozen=True)
class Refusal:
    """One way.

    Attributes:
        make: writes its files into a folder and returns the arguments of `convert`, but for -o.
        line: a regular expression of the whole line after "error: "; FOLDER stands for the folder.
        code: the exit code.
    """

    make: Callable[[Path], Arguments]
    line: str
    code: int = 2


def refuse(refusal: Refusal, folder: Path) -> Result:
    """Run `convert` on what was broken."""
    arguments = refusal.make(folder)
    if "-o" not in arguments:
        arguments += ["-o", folder / "out.onnx"]
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


# Graphs.

BODY = """c = Conv <pads=[1,1,1,1]> (x, first)
n = BatchNormalization (c, g, b, m, v)
s = Sign (n)
d = Conv (s, w)
f = Flatten (d)
y = MatMul (f, last)"""


def network(**constants: Any) -> ModelProto:
    """conv -> BatchNorm -> sign -> binary conv -> linear."""
    own = {
        "first": weights(5, 3, 3, 3),
        **batch_norm(5),
        "w": weights(6, 5, 3, 3),
        "last": np.random.default_rng(0).standard_normal((6 * 36, 10)).astype(np.float32),
    }
    model: ModelProto = ir.to_proto(parse(BODY, ("N", 3, 8, 8), **own | constants))
    return model


def graph(change: Callable[[ModelProto], None] = lambda model: None, *more: str, **constants: Any) -> Any:
    """A model with other constants, or changed, saved as float.onnx."""

    def make(folder: Path) -> Arguments:
        model = network(**constants)
        change(model)
        onnx.save(model, folder / "float.onnx")
        return [folder / "float.onnx", *more]

    return make


def content(change: Callable[[bytes], bytes], *more: str) -> Any:
    """The bytes of a file changed."""

    def make(folder: Path) -> Arguments:
        (folder / "float.onnx").write_bytes(change(network().SerializeToString()))
        return [folder / "float.onnx", *more]

    return make


def real() -> Any:
    return np.clip(np.random.default_rng(0).standard_normal((6, 5, 3, 3)), -1, 1).astype(np.float32)


def nine_values() -> Any:
    rng = np.random.default_rng(0)
    return rng.choice(rng.standard_normal(9, np.float32), (6, 5, 3, 3))


def with_values(*places: Any, value: float = 0, shape: tuple[int, ...] = (6, 5, 3, 3)) -> Any:
    array = weights(*shape)
    for place in places:
        array[place] = value
    return array


def dropout(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("ratio", TensorProto.FLOAT, [], [0.5]))
    model.graph.initializer.append(helper.make_tensor("mode", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(3, helper.make_node("Dropout", ["s", "ratio", "mode"], ["dropped"], "drop"))
    model.graph.node[4].input[0] = "dropped"


def training_norm(model: ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node[1].output.extend(["mean", "var"])


def dangling(model: ModelProto) -> None:
    model.graph.node[2].input[0] = "clamp_1"


def weight_input(model: ModelProto) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == "w")
    model.graph.initializer.remove(tensor)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, tensor.dims))


def operator(op_type: str, domain: str = "") -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
        model.graph.node[2].op_type, model.graph.node[2].domain = op_type, domain

    return change


def symbolic(model: ModelProto) -> None:
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = name
    del model.graph.value_info[:]


def no_shape(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def opset(version: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.opset_import[0].version = version
        del model.graph.value_info[:]

    return change


def no_nodes(model: ModelProto) -> None:
    del model.graph.node[:]


def relu(model: ModelProto) -> None:
    model.graph.node[2].op_type = "Relu"


def branches(model: ModelProto) -> None:
    """An If with the binary convolution in both branches."""
    (conv,) = (node for node in model.graph.node if node.output[0] == "d")
    bodies = []
    for name in ("then", "else"):
        inner = helper.make_node("Conv", ["s", "w"], [f"d_{name}"], f"conv_{name}")
        output = helper.make_tensor_value_info(f"d_{name}", TensorProto.FLOAT, ["N", 6, 6, 6])
        bodies.append(helper.make_graph([inner], name, [], [output]))
    model.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(0, helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0))
    model.graph.node.insert(1, helper.make_node("Cast", ["total"], ["choice"], to=TensorProto.BOOL))
    index = list(model.graph.node).index(conv)
    model.graph.node.remove(conv)
    node = helper.make_node("If", ["choice"], ["d"], "branch", then_branch=bodies[0], else_branch=bodies[1])
    model.graph.node.insert(index, node)


def nested_branches(model: ModelProto) -> None:
    """The same If in the branches of another one."""
    branches(model)
    (inner,) = (node for node in model.graph.node if node.op_type == "If")
    output = helper.make_tensor_value_info("d", TensorProto.FLOAT, ["N", 6, 6, 6])
    body = helper.make_graph([inner], "outer", [], [output])
    outer = helper.make_node("If", ["choice"], ["d"], "outer", then_branch=body, else_branch=body)
    index = list(model.graph.node).index(inner)
    model.graph.node.remove(inner)
    model.graph.node.insert(index, outer)


def external(folder: Path) -> Arguments:
    onnx.save(network(), folder / "float.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "weights.bin").unlink()
    return [folder / "float.onnx"]


# Checkpoints.


class Exploit:
    """A pickle that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def checkpoint(change: Callable[[dict[str, Any], Path], Any] = lambda state, folder: state, *more: Any) -> Any:
    """A LeNet-5 with its state dict changed, or replaced."""

    def make(folder: Path) -> Arguments:
        torch.manual_seed(0)
        torch.save(change(dict(LeNet5().state_dict()), folder), folder / "c.pth.tar")
        return [folder / "c.pth.tar", *(more or ("--arch", "lenet5"))]

    return make


def entry(key: str, value: Any, place: Any = ...) -> Any:
    def change(state: dict[str, Any], folder: Path) -> dict[str, Any]:
        state[key] = state[key].clone()
        state[key][place] = value
        return state

    return checkpoint(change)


def renamed(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Keys of two prefixes, neither of which is that of a wrapper."""
    return {f"{'net' if 'conv' in key else 'more'}.{key}": value for key, value in state.items()}


def without(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    del state["bin_conv2.bn.weight"]
    return state


def misshaped(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    return state | {"bin_conv2.conv.weight": torch.zeros(50, 20, 3, 3)}


def truncated(folder: Path) -> Arguments:
    arguments: Arguments = checkpoint()(folder)
    arguments[0].write_bytes(arguments[0].read_bytes()[:100_000])
    return arguments


def arch_file(text: str, *more: str) -> Any:
    def make(folder: Path) -> Arguments:
        (folder / "net.py").write_text(text)
        torch.save({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, folder / "c.pth.tar")
        return [folder / "c.pth.tar", "--arch", f"{folder}/net.py:Net", *more]

    return make


# Darknet networks.

EXPORTS = Path(__file__).parent / "exports"


def darknet(
    damage: Callable[[str, bytes], tuple[str, bytes]] = lambda cfg, weights: (cfg, weights),
) -> Callable[[Path], Arguments]:
    """A Darknet network of tests/exports, damaged."""

    def make(folder: Path) -> Arguments:
        files = folder / "net.cfg", folder / "net.weights"
        exports = EXPORTS / "darknet_classifier.cfg", EXPORTS / "darknet_classifier.weights"
        cfg, weights = damage(exports[0].read_text(), exports[1].read_bytes())
        files[0].write_text(cfg)
        files[1].write_bytes(weights)
        return [files[0], "--darknet-weights", files[1]]

    return make


OWN_SIGN = """
import torch
class Net(torch.nn.Linear):
    input_shape = (4,)
    def __init__(self): super().__init__(4, 2)
    def forward(self, x): return super().forward(torch.where(x > 0, 1.0, -1.0))
"""
NET = "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self, width): super().__init__(width, 2)\n"
LATENT = (
    r": its input is a sign, but its weights are real-valued: two-valued: 0 of \d filters \(filter \d has \|w\| from "
    r"\S+ to \S+\); latent: likely, all within \[-1, 1\]; clamped: .*; centred over the input channels: no\. Are they "
    r"latent\? Say how the network was trained: --weights xnor .*"
)


def own_sign(folder: Path) -> Arguments:
    (folder / "net.py").write_text(OWN_SIGN)
    torch.save({"weight": torch.tensor([[0.1, -0.2, 0.3, 0.4]] * 2), "bias": torch.zeros(2)}, folder / "c.pth.tar")
    return [folder / "c.pth.tar", "--arch", f"{folder}/net.py:Net"]


FLOAT, CKPT = r"FOLDER/float\.onnx: ", r"FOLDER/c\.pth\.tar: "

REFUSALS: dict[str, Refusal] = {
    # Weights.
    "real weights on a sign": Refusal(graph(w=real()), FLOAT + "Conv 'd'" + LATENT),
    "latent weights behind a sign of one's own": Refusal(own_sign, CKPT + "Gemm '.*'" + LATENT),
    "an all-zero filter": Refusal(
        graph(w=with_values(2)), FLOAT + "Conv 'd': filter 2 is all zeros, .*; retrain, or remove the filter"
    ),
    "nine-valued weights": Refusal(
        graph(lambda model: None, "--strict", w=nine_values()),
        r"--strict: 1 layer .*: Conv 'd': filter 0 has 9 values, which are no sums of 4 or fewer .alpha; .*",
        1,
    ),
    "NaN in weights": Refusal(
        graph(w=with_values((1, 2, 0, 0), value=np.nan)),
        FLOAT + "Conv 'd': its parameter 'w' holds NaN or infinity: .*",
    ),
    "NaN in a variance": Refusal(
        graph(v=np.float32([1, np.nan, 1, 1, 1])),
        FLOAT + "BatchNormalization 'n': its parameter 'v' holds NaN or infinity: .*",
    ),
    "a negative variance": Refusal(
        graph(v=np.float32([1, 1, -2, 1, 1])), FLOAT + r"BatchNormalization 'n': the variance of channel 2 is -2.*"
    ),
    "weights as graph input": Refusal(
        graph(weight_input, "--strict"), "--strict: 1 layer .*: Conv 'd': its weights are not constant.*", 1
    ),
    # Graphs.
    "Dropout in training mode": Refusal(
        graph(dropout), FLOAT + r"Dropout 'drop' is in training mode; call model\.eval\(\) .*"
    ),
    "BatchNorm in training mode": Refusal(
        graph(training_norm), FLOAT + "BatchNormalization 'n' is in training mode; .*"
    ),
    "a dangling name": Refusal(
        graph(dangling), FLOAT + "invalid: Sign '.*' reads 'clamp_1', which nothing makes.*optimize=False.*"
    ),
    "an unknown operator": Refusal(
        graph(operator("Signum")), FLOAT + "not a valid ONNX model: No Op registered for Signum.*"
    ),
    "an unknown domain": Refusal(
        graph(operator("Sgn", "my.ops")), FLOAT + r"Sgn 's' is of the domain my\.ops, which has no definition here.*"
    ),
    "symbolic sizes": Refusal(
        graph(symbolic), FLOAT + r"its input 'x' has dimensions .* \(N, 3, H, W\); give --input-shape"
    ),
    "no input shape": Refusal(
        graph(no_shape), FLOAT + "not a valid ONNX model: Field 'shape' .*; export it again, with opset 20"
    ),
    "another --input-shape": Refusal(
        graph(lambda model: None, "--input-shape", "1,8,8"),
        FLOAT + r"its input is \['N', 3, 8, 8\], which --input-shape \[1, 8, 8\] does not fit",
    ),
    "an --input-shape that is none": Refusal(
        graph(lambda model: None, "--input-shape", "3,a"), "--input-shape 3,a: give one sample's shape as C,H,W, .*"
    ),
    "an opset that is too old": Refusal(
        graph(opset(5)), FLOAT + "not a valid ONNX model: .*; export it again, with opset 20"
    ),
    "an empty graph": Refusal(
        graph(no_nodes), FLOAT + r"not a valid ONNX file, or a truncated one \(it has no nodes\)"
    ),
    "no binary layer": Refusal(graph(relu), "no layer of " + FLOAT[:-2] + " is binary: Conv 'c': .*"),
    "convolutions in an If in an If": Refusal(
        graph(nested_branches), FLOAT + "If 'outer' has a Conv 'conv_else' in a branch or loop, where no pass looks: .*"
    ),
    "convolutions in an If": Refusal(
        graph(branches), FLOAT + "If 'branch' has a Conv 'conv_else' in a branch or loop, where no pass looks: .*"
    ),
    # ONNX files.
    "not an ONNX file": Refusal(
        content(lambda data: b"hello, world\n" * 9), FLOAT + r"not a valid ONNX file, or a truncated one \(.*\)"
    ),
    "a truncated ONNX file": Refusal(
        content(lambda data: data[:-700]), FLOAT + r"not a valid ONNX file, or a truncated one \(.*\)"
    ),
    "external data missing": Refusal(
        external, FLOAT + r"its external data cannot be read \(.*weights\.bin.*\); keep them beside it, .*"
    ),
    "--arch with ONNX": Refusal(
        graph(lambda model: None, "--arch", "nin"), FLOAT[:-2] + " is an ONNX model, .*: leave out --arch nin"
    ),
    # Checkpoints.
    "no such file": Refusal(lambda folder: [folder / "c.pth.tar", "--arch", "nin"], CKPT + "no such file"),
    "a truncated checkpoint": Refusal(truncated, CKPT + r"truncated or damaged \(.*\)"),
    "code in a pickle": Refusal(
        checkpoint(lambda state, folder: {"state_dict": state, "x": Exploit(folder / "it ran")}),
        CKPT + r"refused, because loading it would run code: it needs .* posix\.mkdir; save .*",
    ),
    "a whole module": Refusal(
        checkpoint(lambda state, folder: torch.nn.Linear(4, 2)),
        CKPT + "refused, because .*Linear; save the weights alone, .*",
    ),
    "wrong keys": Refusal(
        checkpoint(renamed), CKPT + r"its keys do not fit LeNet5: \d+ missing: .*; \d+ unexpected: (net|more)\..*"
    ),
    "a missing key": Refusal(
        checkpoint(without), CKPT + r"its keys do not fit LeNet5: 1 missing: bin_conv2\.bn\.weight"
    ),
    "a mis-shaped weight": Refusal(
        checkpoint(misshaped),
        CKPT + r".* 1 of another shape: bin_conv2\.conv\.weight is \[50, 20, 3, 3\], not \[50, 20, 5, 5\]",
    ),
    "NaN in a checkpoint": Refusal(
        entry("ip2.weight", torch.nan, (0, 0)),
        CKPT + r"ip2\.weight holds NaN or infinity: .*; use an earlier checkpoint",
    ),
    "NaN in a checkpoint's variance": Refusal(
        entry("bin_conv2.bn.running_var", torch.nan, 3), CKPT + r"bin_conv2\.bn\.running_var holds NaN or infinity: .*"
    ),
    "a negative variance in a checkpoint": Refusal(
        entry("bin_conv2.bn.running_var", -1.0, 3),
        CKPT + r"bin_conv2\.bn\.running_var is -1 in channel 3; a variance cannot be negative: .*",
    ),
    "an all-zero filter in a checkpoint": Refusal(
        entry("bin_conv2.conv.weight", 0.5, 7), CKPT + r"Conv 'bin_conv2\.conv': filter 7 is all zeros, .*"
    ),
    # Architectures.
    "no --arch": Refusal(
        lambda folder: checkpoint()(folder)[:1], CKPT + "say which architecture it is: lenet5, .* or FILE.py:NAME"
    ),
    "an unknown --arch": Refusal(
        checkpoint(lambda s, f: s, "--arch", "resnet"),
        "unknown architecture 'resnet': choose lenet5, .*, or FILE.py:NAME",
    ),
    "a file that raises": Refusal(
        arch_file("raise OSError('no data')"),
        r"--arch FOLDER/net\.py:Net: importing .*net\.py failed: OSError: no data",
    ),
    "a class that is not there": Refusal(
        arch_file("class Other: pass"),
        r"--arch .*net\.py has no class or function 'Net' that makes a network; it has none",
    ),
    "arguments missing": Refusal(
        arch_file(NET),
        r"--arch \S+: Net\(\) cannot be made without arguments: TypeError: .*'width'; give them with --arch-args",
    ),
    "an argument too many": Refusal(
        arch_file(NET, "--arch-args", '{"widht": 4}'),
        r"--arch \S+: Net\(\) cannot be made with --arch-args .*: TypeError: .* unexpected keyword argument 'widht'",
    ),
    "--arch-args of a built-in one": Refusal(
        checkpoint(lambda s, f: s, "--arch", "lenet5", "--arch-args", '{"depth": 3}'),
        r"--arch lenet5: LeNet5\(\) cannot be made with --arch-args .*'depth'",
    ),
    "--arch-args that are no JSON": Refusal(
        arch_file(NET, "--arch-args", "width=4"), r"--arch-args width=4: not JSON \(.*\); give the keyword arguments .*"
    ),
    "--arch-args that are no object": Refusal(
        arch_file(NET, "--arch-args", "4"), "--arch-args 4: not an object; give the keyword arguments .*"
    ),
    "--arch-args without --arch": Refusal(
        graph(lambda model: None, "--arch-args", '{"width": 4}'), "--arch-args .*give --arch, too"
    ),
    # Darknet; all that is refused in a .cfg file is in tests/source/test_darknet.py.
    "a layer that Darknet has and we have not": Refusal(
        darknet(lambda cfg, weights: (cfg.replace("[softmax]", "[reorg]"), weights)),
        r"FOLDER/net\.cfg:88: \[reorg\], layer 13: this type of layer is not converted; convolutional, .* are",
    ),
    "a truncated .weights file": Refusal(
        darknet(lambda cfg, weights: (cfg, weights[:-4])),
        r"FOLDER/net\.weights: it ends in layer 12 \(\[connected\], FOLDER/net\.cfg:84\), with 287 of the 288 .*",
    ),
    "no .weights file": Refusal(
        lambda folder: darknet()(folder)[:1],
        r"FOLDER/net\.cfg: a Darknet network needs its weights: give --darknet-weights FILE\.weights",
    ),
    # Outputs.
    "the output's folder is missing": Refusal(
        lambda folder: [*graph()(folder), "-o", folder / "no" / "out.onnx"],
        r"FOLDER/no/out\.onnx: the folder FOLDER/no does not exist",
    ),
    "the output is the source": Refusal(
        lambda folder: [*graph()(folder), "-o", folder / "float.onnx"],
        r"FOLDER/float\.onnx is the model itself: choose another name .*",
    ),
}


def show() -> None:
    """Print every line."""
    for name, refusal in REFUSALS.items():
        with tempfile.TemporaryDirectory() as folder:
            result = refuse(refusal, Path(folder))
            print(f"{name} (exit {result.exit_code})\n  {result.stderr.strip().replace(folder, 'FOLDER')}")


if __name__ == "__main__":
    show()
