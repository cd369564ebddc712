"""The networks as one ONNX graph, and how to ask it."""

import numpy as np
from onnx import TensorProto, helper

from .. import onnx_graph
from .data import CAP, HEADS, HIDDEN, SENSORS, STEPS, window_at

NAME = "turbofan-rul"
OUTPUTS = ["rul", "rul_low", "rul_high"]


def network_nodes(ix: int, network: dict) -> tuple:
    """Nodes and constants of one network: from `rows` and `real` to `answer_<ix>` [1,3], as shares of CAP."""

    def name(what):
        return f"{what}_{ix}"

    gate_biases = np.zeros(6 * HIDDEN)
    gate_biases[: 2 * HIDDEN] = network["gates"]
    # ONNX keeps the gates in the order z, r, candidate, as training does, and each matrix as [outputs, inputs].
    constants = {
        "mean": network["mean"],
        "scale": network["scale"],
        "input": network["input"].T[None],
        "recurrent": network["recurrent"].T[None],
        "biases": gate_biases[None],
        "head": network["head"],
        "offset": network["offset"][None],
    }
    gru_inputs = [name("masked"), name("input"), name("recurrent"), name("biases")]
    nodes = [
        helper.make_node("Sub", ["rows", name("mean")], [name("centred")]),
        helper.make_node("Div", [name("centred"), name("scale")], [name("scaled")]),
        helper.make_node("Concat", [name("scaled"), "ones"], [name("with_ones")], axis=2),
        helper.make_node("Mul", [name("with_ones"), "real"], [name("masked")]),  # [T,1,C+1]
        helper.make_node("GRU", gru_inputs, ["", name("state")], hidden_size=HIDDEN, linear_before_reset=1),
        helper.make_node("Reshape", [name("state"), "state_shape"], [name("flat")]),  # [1,H]
        helper.make_node("MatMul", [name("flat"), name("head")], [name("product")]),
        helper.make_node("Add", [name("product"), name("offset")], [name("answer")]),
    ]
    return nodes, onnx_graph.constants({name(what): value for what, value in constants.items()})


def networks_of(constants: dict) -> tuple:
    """The networks and margins that `graph` wrote into these constants."""
    count = sum(name.startswith("recurrent_") for name in constants)
    networks = [
        {
            "mean": constants[f"mean_{ix}"],
            "scale": constants[f"scale_{ix}"],
            "input": constants[f"input_{ix}"][0].T,
            "recurrent": constants[f"recurrent_{ix}"][0].T,
            "gates": constants[f"biases_{ix}"][0, : 2 * HIDDEN],
            "head": constants[f"head_{ix}"],
            "offset": constants[f"offset_{ix}"][0],
        }
        for ix in range(count)
    ]
    return networks, constants["margins"][:, 1:] * np.float32([-1, 1])


def graph(networks: list, margins=None) -> bytes:
    """The networks' mean in cycles; the interval widened below and above by the columns of `margins` [T,2], which has a
    row for each length of the history."""
    if margins is None:
        margins = np.zeros((STEPS, 2))
    nodes = [
        # 1 where a row is real: the last `history` of them.
        helper.make_node("Sub", ["history", "rows_before"], ["real_rows"]),
        helper.make_node("Clip", ["real_rows", "zero", "one"], ["real"]),  # [T,1,1]
        helper.make_node("Transpose", ["window"], ["rows"], perm=[1, 0, 2]),  # [T,1,C]
        helper.make_node("Clip", ["history", "one", "steps"], ["usable_history"]),
        helper.make_node("Sub", ["usable_history", "one"], ["margin_row"]),
        helper.make_node("Cast", ["margin_row"], ["margin_index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["margins", "margin_index"], ["margin"], axis=0),  # [1,3]
    ]
    constants = {
        "rows_before": np.arange(STEPS, dtype=np.float32)[::-1].reshape(STEPS, 1, 1).copy(),
        "ones": np.ones((STEPS, 1, 1), np.float32),
        "zero": np.float32(0),
        "one": np.float32(1),
        "state_shape": np.array([1, HIDDEN]),
        "cap": np.float32(CAP),
        "steps": np.float32(STEPS),
        "margins": np.float32(np.stack([np.zeros(STEPS), -margins[:, 0], margins[:, 1]], axis=1)),
    } | {f"column_{ix}": np.array(ix) for ix in range(HEADS)}
    initializers = onnx_graph.constants(constants)
    for ix, network in enumerate(networks):
        more_nodes, more_constants = network_nodes(ix, network)
        nodes += more_nodes
        initializers += more_constants
    nodes += [
        helper.make_node("Concat", [f"answer_{ix}" for ix in range(len(networks))], ["answers"], axis=0),
        helper.make_node("ReduceMean", ["answers"], ["answer"], axes=[0], keepdims=1),  # [1,3]
        helper.make_node("Mul", ["answer", "cap"], ["cycles"]),
        helper.make_node("Add", ["cycles", "margin"], ["widened"]),
        helper.make_node("Clip", ["widened", "zero", "cap"], ["clipped"]),
        helper.make_node("Gather", ["clipped", "column_0"], ["rul"], axis=1),  # [1]
        helper.make_node("Gather", ["clipped", "column_1"], ["low"], axis=1),
        helper.make_node("Gather", ["clipped", "column_2"], ["high"], axis=1),
        # The three come from three heads: nothing else keeps them in order.
        helper.make_node("Min", ["low", "rul"], ["rul_low"]),
        helper.make_node("Max", ["high", "rul"], ["rul_high"]),
    ]

    inputs = {"window": [1, STEPS, len(SENSORS)], "history": [1]}
    return onnx_graph.model(NAME, nodes, inputs, {name: [1] for name in OUTPUTS}, initializers)


def estimate(runtime, window, history) -> list:
    return [float(output[0]) for output in runtime.run(OUTPUTS, {"window": window, "history": history})]


def estimate_life(runtime, engine, longest: int = STEPS, first: int = 1) -> np.ndarray:
    """Life, low and high after each of an engine's cycles from the `first` on, as if only the last `longest` cycles
    had been watched."""
    windows = (window_at(engine, seen, longest) for seen in range(first, len(engine) + 1))
    return np.array([estimate(runtime, *window) for window in windows])
