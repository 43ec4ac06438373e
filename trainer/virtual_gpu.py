"""A GPU that exists only for TensorFlow's graph optimizer: the layout and the memory that a step would have there."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.core.protobuf import device_properties_pb2
from tensorflow.python.grappler import cluster, item, tf_optimizer


class VirtualRun(NamedTuple):
    """What TensorFlow's graph optimizer makes of a function for a GPU that it is told of."""

    nodes: list[Any]  # NodeDefs after the layout optimizer
    peak_bytes: int  # GPU memory in use at most at one time, without the variables; of a compiled call its results only


def run(function: Any) -> VirtualRun:
    """Lays a concrete function out for a virtual A100 and schedules it there."""
    graph = tf.compat.v1.GraphDef()
    graph.CopyFrom(function.graph.as_graph_def())
    reads = {
        operation.name: operation.outputs[0]
        for operation in function.graph.get_operations()
        if operation.type == "ReadVariableOp"
    }
    for node in graph.node:
        node.device = ""
        if node.name in reads:  # the scheduler takes what a read gives for empty, since its shape is not known
            value = reads[node.name]
            del node.input[:]
            node.attr.clear()
            node.op = "Placeholder"
            node.attr["dtype"].type = value.dtype.as_datatype_enum
            node.attr["shape"].shape.CopyFrom(value.shape.as_proto())
    meta_graph = tf.compat.v1.MetaGraphDef(graph_def=graph)
    outputs = [tensor.op.name for tensor in function.graph.outputs]
    meta_graph.collection_def["train_op"].node_list.value.extend(outputs)

    settings = tf.compat.v1.ConfigProto()
    rewrites = settings.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1
    rewrites.optimizers.append("layout")
    gpu = _device(
        "GPU",
        vendor="NVIDIA",
        model="A100",
        frequency=1410,
        num_cores=108,
        memory_size=1 << 50,  # more than it has, so that every step can be scheduled
        bandwidth=1_555_000_000,
        environment={"architecture": "8.0", "cuda": "12020", "cudnn": "8904"},
    )
    virtual = cluster.Cluster(devices=[gpu, _device("CPU", frequency=2000, num_cores=8, memory_size=64 << 30)])
    optimized = tf_optimizer.OptimizeGraph(settings, meta_graph, cluster=virtual)
    # The scheduler forgets a variable between its uses, but it occupies memory all the time: leave it to the caller.
    _, alive = virtual.DeterminePeakMemoryUsage(item.Item(meta_graph))[gpu.name]
    peak_bytes = sum(num_bytes for name, _, num_bytes, *_ in alive if name not in reads)
    return VirtualRun(list(optimized.node), peak_bytes)


def _device(device_type: str, **properties: Any) -> Any:
    return device_properties_pb2.NamedDevice(
        name=f"/job:localhost/replica:0/task:0/device:{device_type}:0",
        properties=device_properties_pb2.DeviceProperties(type=device_type, **properties),
    )
