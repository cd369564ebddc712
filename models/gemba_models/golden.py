"""Golden vectors: inputs with the answers that onnxruntime gave.

The edge asks tract the same before it trusts a model.
"""

import json

import numpy as np

from .onnx_graph import session

# How far an answer may be off, as a share of the larger of the answer and one; the edge allows as much.
TOLERANCE = 1e-4
# Of the answers in the file: more than the tolerance needs, fewer than another build of the runtime may differ in.
DECIMALS = 6
# Inputs that are one number in the file, not an array of one.
SINGLE = ("history",)


def numbers(values) -> list:
    """The shortest decimals that give the same f32 again."""
    return [float(str(value)) for value in np.asarray(values, dtype=np.float32).ravel()]


def rounded(values, decimals: int) -> np.ndarray:
    """Few decimals keep the file small; the graph sees exactly what the file says."""
    return np.round(values, decimals).astype(np.float32)


def golden(model: bytes, cases, outputs=("score", "contribution")) -> bytes:
    """The file for (name, inputs) pairs, with the graph's answers."""
    runtime = session(model)
    lines = []
    for name, inputs in cases:
        answers = runtime.run(list(outputs), inputs)
        case = {"name": name, "channels": inputs["window"].shape[2]}
        case |= {key: value.item() if key in SINGLE else numbers(value) for key, value in inputs.items()}
        for key, answer in zip(outputs, answers, strict=True):
            answer = [round(float(value), DECIMALS) for value in answer.ravel()]
            case[key] = answer if key == "contribution" else answer[0]
        lines.append(json.dumps(case, separators=(",", ":")))
    return ('{"cases":[\n' + ",\n".join(lines) + "\n]}\n").encode()


def differs(found, expected) -> bool:
    """Whether an answer is further off than the edge allows; NaN differs from everything."""
    found, expected = np.asarray(found, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    if found.shape != expected.shape:
        return True
    return not np.all(np.abs(found - expected) <= TOLERANCE * np.maximum(1.0, np.abs(expected)))


def same_golden(made: bytes, committed: bytes, outputs: list) -> bool:
    """Equal inputs; the answers may differ by what another processor rounds otherwise."""
    made, committed = (json.loads(text)["cases"] for text in (made, committed))
    answers = [[[case.pop(output, None) for output in outputs] for case in cases] for cases in (made, committed)]
    if made != committed:
        return False
    return not any(
        differs(found, expected)
        for case, other in zip(*answers, strict=True)
        for found, expected in zip(case, other, strict=True)
    )
