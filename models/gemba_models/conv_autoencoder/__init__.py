"""models/conv-autoencoder: a small convolutional auto-encoder over time, its weights shared by all channels."""

import numpy as np
from onnx import helper

from .. import onnx_graph
from ..folder import GRAPH, model_files
from ..golden import rounded
from .network import STEPS, WEIGHTS, reproduce_nodes

NAME = "conv-autoencoder"
VERSION = "1.0.0"
# Keeps the contributions a division by something where every error is exactly zero.
TINY = 1e-12


def graph(weights: dict) -> bytes:
    middle, constants = reproduce_nodes("given", "reproduced")
    nodes = [
        # Each channel on its own, in standard deviations from its normal: [1,1,C,T].
        helper.make_node("Sub", ["window", "mean"], ["window_offset"]),
        helper.make_node("Div", ["window_offset", "scale"], ["z"]),  # [1,T,C]
        helper.make_node("Transpose", ["z"], ["z_by_channel"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["z_by_channel", "axis_1"], ["given"]),
        *middle,
        # What it cannot reproduce: the mean square for each channel.
        helper.make_node("Sub", ["given", "reproduced"], ["error"]),
        helper.make_node("Mul", ["error", "error"], ["error_squared"]),
        helper.make_node("ReduceMean", ["error_squared"], ["channel_error_deep"], axes=[3], keepdims=0),  # [1,1,C]
        helper.make_node("Squeeze", ["channel_error_deep", "axis_1"], ["channel_error"]),  # [1,C]
        helper.make_node("ReduceMean", ["channel_error"], ["mean_error"], axes=[1], keepdims=0),  # [1]
        helper.make_node("Sqrt", ["mean_error"], ["score"]),
        helper.make_node("Add", ["channel_error", "tiny"], ["channel_positive"]),
        helper.make_node("ReduceSum", ["channel_positive", "axis_1"], ["channel_total"], keepdims=1),
        helper.make_node("Div", ["channel_positive", "channel_total"], ["contribution"]),
    ]
    constants |= {"axis_1": [1], "tiny": TINY}
    return onnx_graph.model(
        NAME,
        nodes,
        {"window": [1, STEPS, "C"], "mean": ["C"], "scale": ["C"]},
        {"score": [1], "contribution": [1, "C"]},
        onnx_graph.constants({name: weights[name] for name in WEIGHTS} | constants),
    )


def cases():
    """Machines that swing and hum, at three widths, calm and disturbed."""
    for name, channels, disturbed in [("one channel", 1, 0), ("calm", 4, None), ("one sensor off", 8, 5)]:
        rng = np.random.default_rng(channels)
        mean, scale = rng.uniform(1.0, 50.0, channels), rng.uniform(0.5, 2.0, channels)
        steps = np.arange(STEPS)[:, None]
        swing = np.sin(2 * np.pi * steps / rng.uniform(20.0, 90.0, channels))
        z = swing + 0.2 * rng.normal(size=(STEPS, channels))
        if disturbed is not None:
            z[STEPS // 2 :, disturbed] += 5.0
        yield (
            name,
            {
                "window": rounded(mean + scale * z, 2)[None],
                "mean": rounded(mean, 2),
                "scale": rounded(scale, 2),
            },
        )


def files(weights: dict) -> dict:
    about = f"""\
# What the graph is given: T steps of C channels.
steps = {STEPS}
inputs = ["window", "mean", "scale"]
"""
    return model_files(graph(weights), NAME, VERSION, cases(), about)


def made(committed) -> dict:
    """The folder's files by name, with the weights of the committed graph."""
    return files(onnx_graph.constants_of((committed / GRAPH).read_bytes()))


def train(_committed, _data) -> dict:
    """The folder's files by name, with new weights."""
    from .training import trained

    return files(trained())
