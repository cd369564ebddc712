"""Makes models/kernel-regression: the graph, its golden vectors and its manifest.

    python3 -m venv .venv && .venv/bin/pip install -r models/requirements.txt
    .venv/bin/python models/make.py            # writes the folder
    .venv/bin/python models/make.py --check    # fails if what is committed is not what this makes

Nothing is trained: the graph is a pure function of the window and of what calibration learnt of a machine.
The same script gives the same bytes, so the committed files can be checked against it.
"""

import argparse
import hashlib
import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

NAME = "kernel-regression"
VERSION = "1.0.0"
STEPS = 8
MEMORY = 200
OPSET = 15
# 1 / (2 h^2) with the bandwidth h = 0.25 standard deviations a channel.
SHARPNESS = 8.0
# Keeps the contributions a division by something where every residual is exactly zero.
TINY = 1e-12


def graph() -> onnx.ModelProto:
    def constant(name, value, dtype):
        return numpy_helper.from_array(np.array(value, dtype=dtype), name)

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

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    model = helper.make_model(
        helper.make_graph(
            nodes,
            NAME,
            [
                value("window", [1, STEPS, "C"]),
                value("mean", ["C"]),
                value("scale", ["C"]),
                value("memory", [MEMORY, "C"]),
            ],
            [value("score", [1]), value("contribution", [1, "C"])],
            [
                constant("minus_sharpness", -SHARPNESS, np.float32),
                constant("axis_0", [0], np.int64),
                constant("axis_1", [1], np.int64),
                constant("tiny", TINY, np.float32),
            ],
        ),
        producer_name="gemba models/make.py",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def cases():
    """Machines with channels that move together, at three widths, calm and disturbed."""
    for name, channels, disturbed in [("one channel", 1, 0), ("calm", 4, None), ("one sensor off", 8, 5)]:
        rng = np.random.default_rng(channels)
        gain, offset = rng.uniform(0.5, 2.0, channels), rng.uniform(1.0, 50.0, channels)

        def run(rows):
            load = rng.normal(0.0, 1.0, (rows, 1))
            return offset + gain * load + 0.1 * rng.normal(0.0, 1.0, (rows, channels))

        # Two decimals keep the file small; the graph sees exactly what the file says.
        memory = np.round(run(MEMORY), 2).astype(np.float32)
        window = np.round(run(STEPS), 2).astype(np.float32)
        if disturbed is not None:
            window[:, disturbed] += np.float32(4.0)
        mean = np.round(memory.mean(axis=0), 2).astype(np.float32)
        scale = np.round(memory.std(axis=0), 2).astype(np.float32)
        yield name, {"window": window[None], "mean": mean, "scale": scale, "memory": memory}


def numbers(values) -> list:
    return [float(str(value)) for value in np.asarray(values, dtype=np.float32).ravel()]


def golden(model: bytes) -> str:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    lines = []
    for name, inputs in cases():
        score, contribution = session.run(["score", "contribution"], inputs)
        case = {"name": name, "channels": inputs["mean"].size}
        case |= {key: numbers(value) for key, value in inputs.items()}
        # Six decimals: the comparison allows 1e-4, and another build of the runtime may differ in the last bit.
        case |= {"score": round(float(score[0]), 6), "contribution": [round(float(v), 6) for v in contribution[0]]}
        lines.append(json.dumps(case, separators=(",", ":")))
    return '{"cases":[\n' + ",\n".join(lines) + "\n]}\n"


def manifest(model: bytes) -> str:
    return f"""\
# Written by models/make.py.
format = 1
name = "{NAME}"
version = "{VERSION}"
file = "model.onnx"
sha256 = "{hashlib.sha256(model).hexdigest()}"
golden = "golden.json"

# What the graph is given: T steps of C channels, and M rows that calibration remembers.
steps = {STEPS}
memory = {MEMORY}
inputs = ["window", "mean", "scale", "memory"]
"""


def same(name: str, made: bytes, committed: bytes) -> bool:
    """Equal bytes; answers of the golden vectors may differ by what another processor rounds otherwise."""
    if name != "golden.json":
        return made == committed
    made, committed = ([dict(case) for case in json.loads(text)["cases"]] for text in (made, committed))
    answers = [[[case.pop("score"), *case.pop("contribution")] for case in cases] for cases in (made, committed)]
    return made == committed and all(np.allclose(*pair, rtol=0, atol=1e-5) for pair in zip(*answers))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    arguments = parser.parse_args()

    model = graph().SerializeToString(deterministic=True)
    folder = pathlib.Path(__file__).parent / NAME
    files = {"model.onnx": model, "golden.json": golden(model).encode(), "model.toml": manifest(model).encode()}
    if arguments.check:
        differing = [name for name, content in files.items() if not same(name, content, (folder / name).read_bytes())]
        for name in differing:
            print(f"{folder / name}: not what make.py makes; run models/make.py and commit the result", file=sys.stderr)
        return 1 if differing else 0
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        print(f"{folder / name}: {len(content)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
