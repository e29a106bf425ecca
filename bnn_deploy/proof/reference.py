"""The reference of the proof: the float network in PyTorch, or a float ONNX file in plain onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, one_line, option
from bnn_deploy.proof.pieces import piece, reads, with_outputs
from bnn_deploy.provenance import (
    IMAGE_KEY,
    WEIGHTS_KEY,
    ZERO_WEIGHTS_KEY,
    properties,
    read_shapes,
    shape_metadata,
)
from bnn_deploy.runtime.session import FATAL, PROVIDERS, SPINNING, release_bytes

if TYPE_CHECKING:
    import onnx_ir
    from onnx import ModelProto

    from bnn_deploy.image_input import ImageInput
    from bnn_deploy.source.torch_export import FloatExport
    from bnn_deploy.source.zero_weights import ZeroWeights

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Source:
    """The network as its user runs it: the module's own forward(), or the file, with its own weights.

    Attributes:
        description: the software that runs it, for reports.
        replaced: the weights that the reference has binarised instead, by name.
        run: the inputs -> the outputs, in order.
        filled: the layers whose weights of exactly 0 are ±alpha in the reference, with their number.
    """

    description: str
    replaced: tuple[str, ...]
    run: Callable[[Values], list[NDArray[Any]]]
    filled: dict[str, int] = field(default_factory=dict)


class Reference(Protocol):
    """The float network."""

    description: str
    """The software that runs it, for reports."""

    names: set[str]
    """The names of the tensors that `run` can return."""

    outputs: list[str]
    """The names of its outputs."""

    source: Source | None
    """The network that it was made from; None if it is that network."""

    def before_sign(self, name: str) -> str | None:
        """The input of the Sign with output `name`; None if another operator, say a pool, makes `name`."""
        ...

    def run(self, x: Values, wanted: Collection[str]) -> Values:
        """The wanted tensors, inputs too, for the inputs, which are named like the model's, and in its order.

        Raises:
            InputError: it does not run on them: they have a size that it does not take.
        """
        ...

    def sum_exactly(self, x: Values, values: Values, wanted: Collection[str], fed: Collection[str]) -> Values | None:
        """Tensors that `run` has computed, but with every sum of products in float64, rounded once.

        Args:
            x: the inputs, as for `run`.
            values: what `run` has computed.
            wanted: the names of the tensors, among `values`.
            fed: the names of those that they are computed from; of the inputs, as in `x`.

        Returns:
            The wanted tensors; None if this reference cannot sum in another way.
        """
        ...


class TorchReference:
    """PyTorch, running the graph of torch.export node by node; tensors are named like the float ONNX model's.

    The ONNX model has tensors between PyTorch's: x - 2 * y is one operator there, and two here. Those onnxruntime
    computes from PyTorch's tensors around them.
    """

    def __init__(self, export: FloatExport, source: Source) -> None:
        from torch.utils._pytree import tree_leaves

        from bnn_deploy.source.torch_export import torch_version

        self.description = f"PyTorch {torch_version()}"
        self.source: Source | None = source
        self._model = export.model
        self._producers = {output.name: node for node in export.model.graph for output in node.outputs}
        self._between: dict[tuple[str, ...], _Between] = {}
        self._module = export.program.module(check_guards=False)
        nodes = list(self._module.graph.nodes)
        self._nodes = {node.name: node for node in nodes}
        schemas = [getattr(node.target, "_schema", None) for node in nodes]
        self._overwrites = any(schema is not None and schema.is_mutable for schema in schemas)
        self.names = {*self._nodes, *(name for name in self._producers if name)}
        result = next(node for node in nodes if node.op == "output").args[0]
        self.outputs = [node.name for node in tree_leaves(result) if node is not None]

    def before_sign(self, name: str) -> str | None:
        """See Reference."""
        import torch

        if name not in self._nodes:
            producer = self._producers[name]
            before = producer.inputs[0] if producer.op_type == "Sign" else None
            return None if before is None else before.name
        node = self._nodes[name]
        return node.args[0].name if node.target in (torch.ops.aten.sign.default, torch.ops.aten.sgn.default) else None

    def run(self, x: Values, wanted: Collection[str]) -> Values:
        """See Reference."""
        import torch

        given = dict(zip((value.name for value in self._model.graph.inputs), x.values(), strict=True))
        between = tuple(sorted(set(wanted) - self._nodes.keys() - given.keys()))
        if between and between not in self._between:
            import onnx_ir

            self._between[between] = _Between(onnx_ir.to_proto(self._model), between, self._nodes.keys())
        keep = {*wanted, *(self._between[between].needed if between else ())}
        values: Values = {}
        overwrites = self._overwrites

        class Recorder(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                result = super().run_node(n)
                if n.name in keep:
                    # A copy where an in-place operator may overwrite the tensor later.
                    own = result.numpy() if isinstance(result, torch.Tensor) else result
                    values[n.name] = np.array(own) if overwrites else np.asarray(own)
                return result

        try:
            with torch.no_grad():
                Recorder(self._module).run(*map(torch.from_numpy, x.values()))
        except Exception as error:  # torch has no type for it
            raise _does_not_run(self.description, x, str(error).partition("While executing")[0]) from error
        values |= self._between[between].run(x, values) if between else {}
        result = {name: values[name] if name in values else given[name] for name in wanted}
        values.clear()  # a class is part of a cycle: what this one refers to stays until Python looks for cycles
        return result

    def sum_exactly(self, x: Values, values: Values, wanted: Collection[str], fed: Collection[str]) -> Values | None:
        """See Reference."""
        import torch

        from bnn_deploy.proof.exact_sums import ExactSums, behind

        own = {str(info.name): array for info, array in zip(self._model.graph.inputs, x.values(), strict=True)}
        between = tuple(sorted(set(wanted) - self._nodes.keys() - own.keys()))
        if between and between not in self._between:
            import onnx_ir

            self._between[between] = _Between(onnx_ir.to_proto(self._model), between, self._nodes.keys())
        needed = {*wanted, *(self._between[between].needed if between else ())} & self._nodes.keys()
        # What `run` has computed of what they are computed from is rounded in the order that is in question.
        inputs = [node.name for node in self._module.graph.nodes if node.op == "placeholder"]
        start = {*fed, *(inputs if not x.keys().isdisjoint(fed) else ())}
        rounded = {*wanted, *behind(self._module, start)} - start
        given = {name: value for name, value in values.items() if name in self._nodes and name not in rounded}
        sums = ExactSums(self._module, needed, given)
        with torch.no_grad():
            sums.run(*map(torch.from_numpy, x.values()), enable_io_processing=False)
        found = values | own | sums.values
        found |= self._between[between].run(x, found) if between else {}
        return {name: found[name] for name in wanted}


class _Between:
    """Tensors of a float ONNX model, computed from others of it.

    Attributes:
        needed: the names of those others, and of the model's inputs that are among them.
    """

    def __init__(self, model: onnx.ModelProto, tensors: tuple[str, ...], known: Collection[str]) -> None:
        self._tensors = tensors
        self._inputs = [info.name for info in model.graph.input]
        self._session: ort.InferenceSession | None = None
        constants = {tensor.name for tensor in model.graph.initializer}
        self.needed: set[str] = set()
        nodes: list[onnx.NodeProto] = []
        wanted = set(tensors)
        for node in reversed(model.graph.node):
            if not wanted.isdisjoint(node.output):
                nodes.insert(0, node)
                read = {name for name in reads(node) if name} - constants
                self.needed |= {name for name in read if name in known or name in self._inputs}
                wanted |= read - self.needed
        # A copy of what belongs to them: a part of the model itself would keep all of its weights in memory.
        self._part = onnx.ModelProto()
        self._part.CopyFrom(piece(model, nodes, [], tensors))

    def run(self, x: Values, values: Values) -> Values:
        """The tensors for the inputs, in the model's order, and the needed values."""
        values = values | dict(zip(self._inputs, x.values(), strict=True))
        feed = {name: values[name] for name in self.needed}
        if self._session is None:
            infos = [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
                )
                for name, array in feed.items()
            ]
            self._part.graph.input.extend(infos)
            self._session = _plain_session(self._part.SerializeToString())
        return dict(zip(self._tensors, map(np.asarray, self._session.run(list(self._tensors), feed)), strict=True))


class OnnxReference:
    """A float ONNX model in plain onnxruntime, without graph optimisation.

    Its sessions have copies of the weights, so that the model itself is read again if another one is wanted.
    """

    def __init__(self, model: onnx.ModelProto, name: str, read: Callable[[], onnx.ModelProto] | None = None) -> None:
        """For a model, its name in reports, and what reads it again; None keeps it."""
        self.description = f"onnxruntime {ort.__version__} running {name}"
        self.source: Source | None = None
        self._model = model if read is None else None
        self._read = read
        self._signed = {str(node.output[0]): str(node.input[0]) for node in model.graph.node if node.op_type == "Sign"}
        self.names = {str(output) for node in model.graph.node for output in node.output}
        self.outputs = [info.name for info in model.graph.output]
        self._inputs = [info.name for info in model.graph.input]
        self._sessions: dict[tuple[str, ...], ort.InferenceSession] = {}

    def before_sign(self, name: str) -> str | None:
        """See Reference."""
        return self._signed.get(name)

    def run(self, x: Values, wanted: Collection[str]) -> Values:
        """See Reference."""
        # Two exports of one network may name its inputs differently; their order is the same.
        feed = x if x.keys() == set(self._inputs) else dict(zip(self._inputs, x.values(), strict=True))
        given = {name: feed[name] for name in wanted if name in feed}
        tensors = tuple(sorted(set(wanted) - given.keys()))
        if not tensors:
            return given
        if tensors not in self._sessions:
            model = self._model if self._read is None else self._read()
            assert model is not None
            content = with_outputs(model, tensors)
            del model
            self._sessions[tensors] = _plain_session(content)
        try:
            results = self._sessions[tensors].run(list(tensors), feed)
        except Exception as error:  # onnxruntime's exception types are not public
            # Behind the name of the node, and behind the place and condition in onnxruntime's own code.
            reason = str(error).rpartition("Status Message: ")[2].rpartition(" was false. ")[2]
            raise _does_not_run(self.description, x, reason) from error
        return given | dict(zip(tensors, map(np.asarray, results), strict=True))

    def sum_exactly(self, x: Values, values: Values, wanted: Collection[str], fed: Collection[str]) -> Values | None:
        """See Reference: onnxruntime has no convolution of float64, and adds its products in blocks."""
        return None


class ImageReference:
    """A network of normalised floats, for a model that takes images of bytes and normalises them itself."""

    def __init__(self, network: Reference, image: ImageInput, converted: ModelProto) -> None:
        from bnn_deploy.image_input import normalised_name

        self.description = network.description
        self.outputs = network.outputs
        self._network = network
        self._image = image
        self._input = converted.graph.input[0].name
        self._normalised = normalised_name(self._input)
        self.names = {*network.names, self._normalised}
        own = network.source
        self.source: Source | None = own and replace(own, run=lambda x: own.run(self._normalise(x)))

    def _normalise(self, x: Values) -> Values:
        return {name: self._image.normalise(array) for name, array in x.items()}

    def _own(self, names: Collection[str]) -> set[str]:
        """The network's names of tensors; its input is the normalised image."""
        return {self._input if name == self._normalised else name for name in names}

    def _ours(self, values: Values, x: Values) -> Values:
        return {self._normalised if name == self._input else name: value for name, value in values.items()} | x

    def before_sign(self, name: str) -> str | None:
        """See Reference."""
        before = self._network.before_sign(name)
        return self._normalised if before == self._input else before

    def run(self, x: Values, wanted: Collection[str]) -> Values:
        """See Reference."""
        found = self._ours(self._network.run(self._normalise(x), self._own(wanted)), x)
        return {name: found[name] for name in wanted}

    def sum_exactly(self, x: Values, values: Values, wanted: Collection[str], fed: Collection[str]) -> Values | None:
        """See Reference."""
        own = {self._input if name == self._normalised else name: v for name, v in values.items() if name not in x}
        return self._network.sum_exactly(self._normalise(x), own, wanted, self._own(fed))


def _takes_bytes(against: Any) -> bool:
    """Whether a float ONNX model normalises images of bytes itself, as that of `convert --float` does."""
    from bnn_deploy.source import onnx_file

    if not onnx_file.is_onnx(against):
        return False
    return any(
        info.type.tensor_type.elem_type == onnx.TensorProto.UINT8 for info in onnx_file.read(against).graph.input
    )


def _of_floats(proto: ModelProto, image: ImageInput) -> ModelProto:
    """The inputs, outputs and metadata of a converted model, as if it took normalised floats."""
    plain = onnx.ModelProto()
    plain.graph.output.extend(proto.graph.output)
    (info,) = proto.graph.input
    plain.graph.input.add().CopyFrom(info)
    tensor = plain.graph.input[0].type.tensor_type
    tensor.elem_type = onnx.TensorProto.FLOAT
    batch, *sample = list(info.type.tensor_type.shape.dim)
    del tensor.shape.dim[:]
    tensor.shape.dim.extend([batch, *image.channels_first(sample)])
    metadata = properties(proto)
    shapes = {name: image.channels_first(shape) for name, shape in read_shapes(metadata, [info.name]).items()}
    del metadata[IMAGE_KEY]
    metadata |= shape_metadata(shapes)
    onnx.helper.set_model_props(plain, metadata)
    return plain


def _does_not_run(description: str, x: Values, reason: str) -> InputError:
    """What to say of a reference that fails on some inputs; the caller knows where they are from."""
    shapes = " and ".join(str([*array.shape]) for array in x.values())
    return InputError(f"{description} does not run on inputs {shapes}: {one_line(reason)}: give them in another size")


def _plain_session(model: bytes) -> ort.InferenceSession:
    """A session without graph optimisation, of a serialised model."""
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # it would keep what the largest batch needed
    options.add_session_config_entry(SPINNING, "0")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = FATAL  # errors arrive as exceptions
    try:
        session = ort.InferenceSession(model, options, providers=PROVIDERS)
    except Exception as error:  # onnxruntime's exception types are not public
        raise InputError(f"onnxruntime cannot load the float model: {one_line(error)}") from error
    release_bytes(session)
    return session


def _require_like(model: onnx.ModelProto, converted: onnx.ModelProto, against: Any) -> None:
    """Refuse a float model whose inputs or number of outputs are not the converted model's."""
    for own, other in zip(model.graph.input, converted.graph.input, strict=False):
        sample, shape = ([d.dim_value for d in info.type.tensor_type.shape.dim][1:] for info in (own, other))
        if len(sample) != len(shape) or any(
            0 not in pair and len(set(pair)) > 1 for pair in zip(sample, shape, strict=True)
        ):
            raise InputError(
                f"{against}: its input is {['N', *sample]}, the converted model's {['N', *shape]}: "
                "it is not what this model was converted from"
            )
    counts = [(len(proto.graph.input), len(proto.graph.output)) for proto in (model, converted)]
    if counts[0] != counts[1]:
        (inputs, outputs), (other_inputs, other_outputs) = counts
        raise InputError(
            f"{against}: it has {inputs} inputs and {outputs} outputs, the converted model {other_inputs} and "
            f"{other_outputs}: it is not what this model was converted from"
        )


def _input_of(info: onnx.ValueInfoProto) -> tuple[str, str, list[int]]:
    """An input's name, its type as numpy calls it, and its shape with the batch; 0 for open sizes."""
    tensor = info.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return info.name, dtype, [dim.dim_value for dim in tensor.shape.dim]


def make_reference(
    against: Any,
    arch: str | None,
    arch_args: Mapping[str, Any] | None,
    key: str | None,
    prefix: str | None,
    proto: ModelProto,
) -> Reference:
    """The reference that `against` names: PyTorch for a checkpoint or module, onnxruntime for a float .onnx file."""
    from bnn_deploy.image_input import read_image_input

    image = read_image_input(properties(proto))
    if image is not None and not _takes_bytes(against):
        plain = _of_floats(proto, image)
        return ImageReference(make_reference(against, arch, arch_args, key, prefix, plain), image, proto)
    shapes = {info.name: tuple(d.dim_value for d in info.type.tensor_type.shape.dim)[1:] for info in proto.graph.input}
    from bnn_deploy.source import onnx_file

    metadata = properties(proto)
    zero_weights: Any = metadata.get(ZERO_WEIGHTS_KEY)
    if onnx_file.is_onnx(against):
        name = Path(against).name if isinstance(against, str | os.PathLike) else "the float model"
        model = onnx_file.read(against)
        _require_like(model, proto, against)
        scheme: Any = metadata.get(WEIGHTS_KEY, "auto")
        if scheme not in ("auto", "as-is") or zero_weights is not None:
            # The file may hold latent weights: they are binarised as they were in the conversion.
            import onnx_ir

            from bnn_deploy.source.latent_weights import float_model

            sample = next(iter(shapes.values())) if len(shapes) == 1 else shapes
            binary, _, replaced = float_model(against, sample, scheme)
            own = OnnxReference(model, name, partial(onnx_file.read, against))
            reference = OnnxReference(onnx_ir.to_proto(binary), name)
            if replaced:

                def run(x: Values) -> list[NDArray[Any]]:
                    found = own.run(x, set(own.outputs))
                    return [found[output] for output in own.outputs]

                reference.source = Source(own.description, tuple(replaced), run)
            return reference if zero_weights is None else _filled(reference, binary, zero_weights)
        is_path = isinstance(against, str | os.PathLike)
        return OnnxReference(model, name, partial(onnx_file.read, against) if is_path else None)
    from bnn_deploy.source.darknet.network import is_cfg
    from bnn_deploy.source.latent_weights import float_module
    from bnn_deploy.source.module_inputs import inputs_of_model
    from bnn_deploy.source.torch_module import eager
    from bnn_deploy.source.torch_source import torch_source
    from bnn_deploy.source.user_code import users_network

    if is_cfg(against):
        raise InputError(
            f"{os.fspath(against)}: a Darknet network is verified against its float model: convert it with "
            f"{option('float_output')}, and give that file: {option('against', example='FLOAT.onnx')}"
        )
    weights: Any = metadata.get(WEIGHTS_KEY, "auto")
    name = str(against) if isinstance(against, str | os.PathLike) else type(against).__name__
    examples = read_shapes(metadata, [info.name for info in proto.graph.input])
    with users_network(name):
        module = torch_source(against, arch, arch_args, key, prefix).module
        inputs = inputs_of_model(module, name, [_input_of(info) for info in proto.graph.input], examples)
        export = float_module(module, inputs, weights)
        forward = eager(module, inputs, copied=module is against)
    source = Source("PyTorch's forward()", export.binarized, lambda x: forward(list(x.values())))
    eager_reference = TorchReference(export, source)
    return eager_reference if zero_weights is None else _filled(eager_reference, export.model, zero_weights)


def _filled(reference: Reference, model: onnx_ir.Model, zero_weights: ZeroWeights) -> OnnxReference:
    """A reference with the weights that --zero-weights made; what it was made from is the reference as it was.

    Args:
        reference: the network with its weights of exactly 0.
        model: its float model.
        zero_weights: what these weights became.
    """
    import onnx_ir

    from bnn_deploy.source.zero_weights import fill_zero_weights

    changed, filled = fill_zero_weights(model, zero_weights)

    def run(x: Values) -> list[NDArray[Any]]:
        found = reference.run(x, set(reference.outputs))
        return [found[output] for output in reference.outputs]

    result = OnnxReference(onnx_ir.to_proto(changed), f"the float model with {option('zero_weights', zero_weights)}")
    replaced = () if reference.source is None else reference.source.replaced
    result.source = Source(reference.description, replaced, run, filled)
    return result
