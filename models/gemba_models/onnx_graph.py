"""Writes ONNX graphs and asks onnxruntime.

Only plain ai.onnx operators of opset 13 to 17: tract loads no others.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 15
IR_VERSION = 8
PRODUCER = "gemba models/make.py"


def constants(values: dict) -> list:
    """Initializers: floating-point numbers as f32, whole ones as i64."""

    def tensor(value):
        value = np.asarray(value)
        return value.astype(np.int64 if value.dtype.kind in "iu" else np.float32)

    return [numpy_helper.from_array(tensor(value), name) for name, value in values.items()]


def constants_of(model: bytes) -> dict:
    """The initializers of a graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(model).graph.initializer}


def values(shapes: dict) -> list:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]


def model(name: str, nodes: list, inputs: dict, outputs: dict, initializers: list) -> bytes:
    """The checked graph. `inputs` and `outputs` are shapes by name; a dimension that is a text is a symbol."""
    made = helper.make_model(
        helper.make_graph(nodes, name, values(inputs), values(outputs), initializers),
        producer_name=PRODUCER,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString(deterministic=True)


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
