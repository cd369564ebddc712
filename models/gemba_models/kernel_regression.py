"""models/kernel-regression: auto-associative kernel regression, written as attention over remembered states.

Nothing is trained.
"""

import numpy as np
from onnx import helper

from . import onnx_graph
from .folder import model_files
from .golden import rounded

NAME = "kernel-regression"
VERSION = "1.0.0"
STEPS = 8
MEMORY = 200
# 1 / (2 h^2) with the bandwidth h = 0.25 standard deviations a channel.
SHARPNESS = 8.0
# Keeps the contributions a division by something where every residual is exactly zero.
TINY = 1e-12


def graph() -> bytes:
    nodes = [
        # What is judged: the window's mean, in standard deviations from the machine's normal.
        helper.make_node("ReduceMean", ["window"], ["window_mean"], axes=[1], keepdims=0),  # [1,C]
        helper.make_node("Sub", ["window_mean", "mean"], ["window_offset"]),
        helper.make_node("Div", ["window_offset", "scale"], ["query"]),  # [1,C]
        helper.make_node("Sub", ["memory", "mean"], ["memory_offset"]),
        helper.make_node("Div", ["memory_offset", "scale"], ["keys"]),  # [M,C]
        # How near each remembered state is: a Gaussian kernel, the distance divided by the number of channels.
        helper.make_node("Sub", ["keys", "query"], ["difference"]),
        helper.make_node("Mul", ["difference", "difference"], ["difference_squared"]),
        helper.make_node("ReduceMean", ["difference_squared"], ["distance"], axes=[1], keepdims=0),  # [M]
        helper.make_node("Mul", ["distance", "minus_sharpness"], ["logit_column"]),
        helper.make_node("Unsqueeze", ["logit_column", "axis_0"], ["logits"]),  # [1,M]
        helper.make_node("Softmax", ["logits"], ["weights"], axis=1),
        # What a healthy machine in such a state would have shown, and how far this one is from it.
        helper.make_node("MatMul", ["weights", "keys"], ["expected"]),  # [1,C]
        helper.make_node("Sub", ["query", "expected"], ["residual"]),
        helper.make_node("Mul", ["residual", "residual"], ["residual_squared"]),
        helper.make_node("ReduceMean", ["residual_squared"], ["mean_square"], axes=[1], keepdims=0),  # [1]
        helper.make_node("Sqrt", ["mean_square"], ["score"]),
        helper.make_node("Add", ["residual_squared", "tiny"], ["residual_positive"]),
        helper.make_node("ReduceSum", ["residual_positive", "axis_1"], ["residual_total"], keepdims=1),
        helper.make_node("Div", ["residual_positive", "residual_total"], ["contribution"]),
    ]
    return onnx_graph.model(
        NAME,
        nodes,
        {"window": [1, STEPS, "C"], "mean": ["C"], "scale": ["C"], "memory": [MEMORY, "C"]},
        {"score": [1], "contribution": [1, "C"]},
        onnx_graph.constants({"minus_sharpness": -SHARPNESS, "axis_0": [0], "axis_1": [1], "tiny": TINY}),
    )


def rows_of_a_run(rng, offset, gain, rows: int) -> np.ndarray:
    load = rng.normal(0.0, 1.0, (rows, 1))
    return offset + gain * load + 0.1 * rng.normal(0.0, 1.0, (rows, gain.size))


def cases():
    """Machines with channels that move together, at three widths, calm and disturbed."""
    for name, channels, disturbed in [("one channel", 1, 0), ("calm", 4, None), ("one sensor off", 8, 5)]:
        rng = np.random.default_rng(channels)
        gain, offset = rng.uniform(0.5, 2.0, channels), rng.uniform(1.0, 50.0, channels)

        memory, window = (rounded(rows_of_a_run(rng, offset, gain, rows), 2) for rows in (MEMORY, STEPS))
        if disturbed is not None:
            window[:, disturbed] += np.float32(4.0)
        mean, scale = rounded(memory.mean(axis=0), 2), rounded(memory.std(axis=0), 2)
        yield name, {"window": window[None], "mean": mean, "scale": scale, "memory": memory}


def made(_committed) -> dict:
    """The folder's files by name."""
    about = f"""\
# What the graph is given: T steps of C channels, and M rows that calibration remembers.
steps = {STEPS}
memory = {MEMORY}
inputs = ["window", "mean", "scale", "memory"]
"""
    return model_files(graph(), NAME, VERSION, cases(), about)
