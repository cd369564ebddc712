"""A model's folder: its files, and whether they keep what its manifest promises.

What is checked here is what the edge checks at load, with onnxruntime in tract's place.
"""

import hashlib
import json
import pathlib
import tomllib

import numpy as np
import onnx

from .golden import differs, golden, same_golden
from .onnx_graph import session

MANIFEST = "model.toml"
GRAPH = "model.onnx"
GOLDEN = "golden.json"
CARD = "README.md"
OPSETS = range(13, 18)
GRAPH_BYTES_MAX = 64 * 1024 * 1024
GOLDEN_BYTES_MAX = 4 * 1024 * 1024
# What a detector answers. Other kinds name their outputs in the manifest; each is of shape [1].
DETECTOR_OUTPUTS = ("score", "contribution")


def manifest(model: bytes, name: str, version: str, about: str, kind: str = "") -> bytes:
    """`model.toml`; `about` is what only this model has: the sizes and the inputs."""
    kind = f'kind = "{kind}"\n' if kind else ""
    return f"""\
# Written by models/make.py.
format = 1
{kind}name = "{name}"
version = "{version}"
file = "{GRAPH}"
sha256 = "{hashlib.sha256(model).hexdigest()}"
golden = "{GOLDEN}"

{about}""".encode()


def model_files(model: bytes, name: str, version: str, cases, about: str) -> dict:
    """A detector's files by name, but for its card."""
    return {GRAPH: model, GOLDEN: golden(model, cases), MANIFEST: manifest(model, name, version, about)}


def differing(folder: pathlib.Path, made: dict) -> list:
    """The files that are not what was made again."""
    outputs = outputs_of(tomllib.loads(made[MANIFEST].decode()))

    def same(name, content):
        path = folder / name
        if not path.is_file():
            return False
        committed = path.read_bytes()
        return same_golden(content, committed, outputs) if name == GOLDEN else content == committed

    return [name for name, content in made.items() if not same(name, content)]


def outputs_of(promised: dict) -> list:
    return promised.get("outputs", list(DETECTOR_OUTPUTS))


def shape(name: str, promised: dict, channels) -> list:
    """Of one input or output, for so many channels."""
    return {
        "window": [1, promised["steps"], channels],
        "mean": [channels],
        "scale": [channels],
        "memory": [promised.get("memory", 0), channels],
        "loadings": [channels, promised.get("components", 0)],
        "eigenvalues": [promised.get("components", 0)],
        "contribution": [1, channels],
    }.get(name, [1])


def broken_promises(folder: pathlib.Path) -> list:
    """What is wrong with a folder, in sentences; none if it may be loaded."""
    promised = tomllib.loads((folder / MANIFEST).read_text())
    graph = (folder / promised["file"]).read_bytes()
    examples = (folder / promised["golden"]).read_bytes()
    wrong = [f"{CARD}: a model without a card"] if not (folder / CARD).is_file() else []
    if hashlib.sha256(graph).hexdigest() != promised["sha256"]:
        wrong.append(f"{promised['file']}: its SHA-256 is not what {MANIFEST} promises")
    if len(graph) > GRAPH_BYTES_MAX or len(examples) > GOLDEN_BYTES_MAX:
        wrong.append("a file is larger than the edge reads")
    proto = onnx.load_from_string(graph)
    onnx.checker.check_model(proto, full_check=True)
    if [(opset.domain, opset.version in OPSETS) for opset in proto.opset_import] != [("", True)]:
        wrong.append(f"{promised['file']}: plain ai.onnx of opset {OPSETS[0]} to {OPSETS[-1]} is needed")
    runtime = session(graph)
    outputs = outputs_of(promised)
    # In a detector C is a symbol; other kinds name their channels.
    channels = len(promised["channels"]) if "channels" in promised else "C"
    found = [{value.name: value.shape for value in side} for side in (runtime.get_inputs(), runtime.get_outputs())]
    for what, names, shapes in zip(("inputs", "outputs"), (promised["inputs"], outputs), found, strict=True):
        expected = {name: shape(name, promised, channels) for name in names}
        if shapes != expected:
            wrong.append(f"{promised['file']}: its {what} are {shapes}, {MANIFEST} promises {expected}")
    if wrong:
        return wrong
    return [
        fault for case in json.loads(examples)["cases"] for fault in wrong_answers(runtime, promised, outputs, case)
    ]


def wrong_answers(runtime, promised: dict, outputs: list, case: dict) -> list:
    inputs = {
        name: np.array(case[name], np.float32).reshape(shape(name, promised, case["channels"]))
        for name in promised["inputs"]
    }
    faults = []
    for name, found in zip(outputs, runtime.run(outputs, inputs), strict=True):
        if differs(found, case[name]):
            faults.append(f"{GOLDEN}: case {case['name']!r} gives {name} {found.ravel().tolist()}, not {case[name]}")
        if name == "contribution" and (differs(found.sum(), 1.0) or found.min() < 0.0):
            faults.append(f"{GOLDEN}: case {case['name']!r}: the contributions are no shares of one")
    return faults
