"""The network's layers: once as an ONNX graph, once for training. Both read the same table.

Each channel goes through alone and with the same weights: channels stand along a second axis of the convolution, in
which its kernel is one wide. (As a batch they would cost tract half as much again.) Upwards a layer computes r values
for each step and lays them side by side (a sub-pixel convolution), which is a transposed convolution made of plain
operators.
"""

from typing import NamedTuple

import numpy as np
from onnx import helper

# Steps in a window (T); the strides below divide it.
STEPS = 60


class Layer(NamedTuple):
    name: str
    inputs: int
    outputs: int
    kernel: int
    # Above one: fewer steps after it.
    stride: int = 1
    # Above one: as many times the steps after it.
    upscale: int = 1
    activated: bool = True

    @property
    def pads(self) -> tuple:
        """So that the steps after it are those before it over the stride."""
        total = self.kernel - self.stride
        return total // 2, total - total // 2

    def shapes(self) -> dict:
        made = self.outputs * self.upscale
        return {f"{self.name}_weights": (made, self.inputs, 1, self.kernel), f"{self.name}_offsets": (made,)}


# 60 steps become 5 x 3 numbers, each between -1 and 1, and 60 steps again.
LAYERS = [
    Layer("quarter", 1, 16, kernel=8, stride=4),
    Layer("encode", 16, 3, kernel=5, stride=3),
    Layer("decode", 3, 16, kernel=3, upscale=3),
    Layer("quadruple", 16, 1, kernel=3, upscale=4, activated=False),
]
WEIGHTS = {name: shape for layer in LAYERS for name, shape in layer.shapes().items()}


def reproduce_nodes(given: str, answer: str) -> tuple:
    """Nodes from `given` [1,1,C,T] to `answer` [1,1,C,T], and the constants they need beside the weights."""
    nodes, constants, steps = [], {}, STEPS
    for layer in LAYERS:
        before, after = layer.pads
        nodes.append(
            helper.make_node(
                "Conv",
                [given, f"{layer.name}_weights", f"{layer.name}_offsets"],
                [f"{layer.name}_sums"],
                strides=[1, layer.stride],
                pads=[0, before, 0, after],
            )
        )
        given = f"{layer.name}_sums"
        steps //= layer.stride
        if layer.activated:
            nodes.append(helper.make_node("Tanh", [given], [f"{layer.name}_values"]))
            given = f"{layer.name}_values"
        if layer.upscale > 1:
            # [1, outputs x r, C, L] to [1, outputs, C, L x r].
            apart, beside, upscaled = (f"{layer.name}_{what}" for what in ("apart", "beside", "upscaled"))
            constants[f"{apart}_shape"] = [layer.outputs, layer.upscale, -1, steps]
            steps *= layer.upscale
            constants[f"{upscaled}_shape"] = [1, layer.outputs, -1, steps]
            nodes += [
                helper.make_node("Reshape", [given, f"{apart}_shape"], [apart]),
                helper.make_node("Transpose", [apart], [beside], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [beside, f"{upscaled}_shape"], [upscaled]),
            ]
            given = upscaled
    nodes.append(helper.make_node("Identity", [given], [answer]))
    return nodes, constants


def reproduce(weights: dict, windows):
    """The same in jax, for training: from [B,T] to [B,T]."""
    import jax.numpy as jnp
    from jax import lax

    values = windows[:, None, :]
    for layer in LAYERS:
        kernel = weights[f"{layer.name}_weights"][:, :, 0]
        values = lax.conv_general_dilated(values, kernel, (layer.stride,), [layer.pads])
        values = values + weights[f"{layer.name}_offsets"][:, None]
        if layer.activated:
            values = jnp.tanh(values)
        if layer.upscale > 1:
            batch, _, steps = values.shape
            values = values.reshape(batch, layer.outputs, layer.upscale, steps).swapaxes(2, 3)
            values = values.reshape(batch, layer.outputs, steps * layer.upscale)
    return values[:, 0]


def first_weights(rng) -> dict:
    """Drawn so that values neither grow nor shrink on their way."""
    drawn = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in WEIGHTS.items()}
    return {name: np.float32(value if value.ndim > 1 else np.zeros_like(value)) for name, value in drawn.items()}
