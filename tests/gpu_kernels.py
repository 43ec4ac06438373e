"""What a GPU would do with a traced function, read off the kernels that this TensorFlow registers; needs no GPU.

TensorFlow lowers calls, loops and branches into one graph, in which every op runs with the kernel of its device and
dtypes. A kernel may want an argument in the host's memory, and an op without a GPU kernel runs on the host: where the
producer and the consumer of a tensor disagree, TensorFlow copies it between GPU and host in every step.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.framework import kernels

HOST, DEVICE = "host", "device"
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_LOOPS = ("While", "StatelessWhile")
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")
_WITHOUT_KERNEL = ("Placeholder", "NoOp", "_Arg", "_Retval")
_ON_HOST_ONLY = (tf.string, tf.resource)  # a value of these is a handle, or cannot lie in a GPU's memory


class Crossing(NamedTuple):
    """A tensor that is copied between the host's memory and the GPU's."""

    tensor: str
    consumer: str
    dtype: tf.DType
    num_bytes: float  # infinite where the shape is not static
    goes_to: str


class Findings(NamedTuple):
    """What a function does on a GPU, its nested functions included."""

    operations: list[tf.Operation]  # all but those inside calls that XLA compiles
    without_kernel: list[tf.Operation]  # run on the host
    crossings: list[Crossing]
    compiled: list[tf.Operation]  # calls that XLA compiles


def examine(function: Any) -> Findings:
    """Follows every tensor of a concrete function, as if every op were placed on a GPU."""
    findings = Findings([], [], [], [])
    graph = function.graph
    _walk(graph, [_resting_place(tensor.dtype) for tensor in graph.inputs], findings)
    return findings


def find_kernel(node: Any, device_types: tuple[str, ...] = ("GPU", "DEFAULT")) -> Any:
    """The KernelDef that a GPU would run for a NodeDef, or None; of several, that of the highest priority."""
    for device_type in device_types:
        fitting = [kernel for kernel in _kernels(node.op) if kernel.device_type == device_type and _fits(kernel, node)]
        if fitting:
            return max(fitting, key=lambda kernel: kernel.priority)
    return None


@functools.cache
def _kernels(op_type: str) -> list[Any]:
    return list(kernels.get_registered_kernels_for_op(op_type).kernel)


def _fits(kernel: Any, node: Any) -> bool:
    if kernel.label and kernel.label != node.attr["_kernel"].s.decode():
        return False
    for constraint in kernel.constraint:
        value = node.attr[constraint.name]
        given = value.list.type if value.HasField("list") else [value.type]
        if not set(given) <= set(constraint.allowed_values.list.type):
            return False
    return True


def _walk(graph: Any, argument_places: list[str], findings: Findings) -> list[str]:
    """Adds what is in `graph` to `findings`; returns where its outputs lie."""
    places = {tensor.ref(): place for tensor, place in zip(graph.inputs, argument_places)}

    def take(operation: tf.Operation, wanted: list[str]) -> None:
        for tensor, place in zip(operation.inputs, wanted):
            if place != places[tensor.ref()] and tensor.dtype not in _ON_HOST_ONLY:
                findings.crossings.append(
                    Crossing(tensor.name, operation.name, tensor.dtype, _num_bytes(tensor), goes_to=place)
                )

    def functions(operation: tf.Operation) -> list[Any]:
        values = operation.node_def.attr.values()
        named = [value.func for value in values if value.HasField("func")]
        named += [function for value in values for function in value.list.func]
        return [graph._get_function(function.name).graph for function in named]

    for operation in graph.get_operations():
        if operation.type in _WITHOUT_KERNEL:
            for tensor in operation.outputs:
                places.setdefault(tensor.ref(), _resting_place(tensor.dtype))
            continue
        findings.operations.append(operation)
        resting = [_resting_place(tensor.dtype) for tensor in operation.inputs]
        made = [_resting_place(tensor.dtype) for tensor in operation.outputs]
        if is_compiled(operation):
            # XlaLaunch takes and gives everything but handles in the GPU's memory, int32 too.
            findings.compiled.append(operation)
            take(operation, [HOST if tensor.dtype in _ON_HOST_ONLY else DEVICE for tensor in operation.inputs])
            made = [HOST if tensor.dtype in _ON_HOST_ONLY else DEVICE for tensor in operation.outputs]
        elif operation.type in _CALLS:
            (body,) = functions(operation)
            made = _walk(body, [places[tensor.ref()] for tensor in operation.inputs], findings)
        elif operation.type in _LOOPS:
            take(operation, resting)
            for nested in functions(operation):
                _walk(nested, resting, findings)
        elif operation.type in _BRANCHES:
            take(operation, resting)
            for nested in functions(operation):
                _walk(nested, resting[1:], findings)
        else:
            kernel = find_kernel(operation.node_def)
            if kernel is None:
                findings.without_kernel.append(operation)
                take(operation, [HOST] * len(operation.inputs))
                made = [HOST] * len(operation.outputs)
            else:
                inputs, outputs = _argument_names(operation)
                take(operation, [HOST if name in kernel.host_memory_arg else DEVICE for name in inputs])
                made = [HOST if name in kernel.host_memory_arg else DEVICE for name in outputs]
        for tensor, place in zip(operation.outputs, made):
            places[tensor.ref()] = place
    return [places[tensor.ref()] for tensor in graph.outputs]


def is_compiled(operation: tf.Operation) -> bool:
    """Whether XLA compiles this call."""
    return operation.type in _CALLS and operation.node_def.attr["_XlaMustCompile"].b


def _argument_names(operation: tf.Operation) -> tuple[list[str], list[str]]:
    """For each input and output tensor the name of its argument in the op's definition."""
    attributes = operation.node_def.attr

    def expand(arguments: Any) -> list[str]:
        names = []
        for argument in arguments:
            count = 1
            if argument.number_attr:
                count = attributes[argument.number_attr].i
            elif argument.type_list_attr:
                count = len(attributes[argument.type_list_attr].list.type)
            names += [argument.name] * count
        return names

    definition = operation.op_def
    return expand(definition.input_arg), expand(definition.output_arg)


@functools.cache
def _resting_place(dtype: tf.DType) -> str:
    """Where loops, branches and arguments keep a tensor: their kernels hold int32 in the host's memory."""
    if dtype in _ON_HOST_ONLY:
        return HOST
    node = tf.compat.v1.NodeDef(op="Switch")
    node.attr["T"].type = dtype.as_datatype_enum
    return HOST if "data" in find_kernel(node).host_memory_arg else DEVICE


def _num_bytes(tensor: tf.Tensor) -> float:
    elements = tensor.shape.num_elements()
    return float("inf") if elements is None else elements * max(tensor.dtype.size, 1)
