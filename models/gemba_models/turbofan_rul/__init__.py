"""models/turbofan-rul: a learned estimate of a turbofan's remaining useful life, with an interval.

Trained on C-MAPSS FD001 of NASA, which is not part of the repository.

One split of the 100 engines: 20 are held out. The other 80 are dealt into five groups, and five small GRUs are trained,
each without one group. The graph averages the five. What each of them says of the group it has not seen gives the
interval its width (conformal). So no engine that was held out touched the weights, the scaling or the interval.
"""

import json
import pathlib

import numpy as np

from ..folder import CARD, GOLDEN, GRAPH, MANIFEST, manifest
from ..golden import TOLERANCE, golden, rounded
from ..onnx_graph import constants_of, session
from .data import CAP, COVERAGE, SENSORS, STEPS, folds, read_engines, window_at
from .graph import NAME, OUTPUTS, estimate, graph, networks_of

VERSION = "1.0.0"
SEED = 1
# Below the folder that --data names.
FILE = pathlib.Path("cmapss") / "train_FD001.txt"
# The model card's figures stand after this line.
FIGURES_HEADING = "## Figures\n"


def invented_cases(engines, training):
    """Invented windows, no row of the data: the training engines' mean, moved towards the mean of their last ten
    cycles, with noise."""
    rows = np.concatenate([engines[unit] for unit in training])
    worn = np.concatenate([engines[unit][-10:] for unit in training]).mean(axis=0)
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    for ix, (name, history, wear_from, wear_to, padding) in enumerate([
        ("full window, healthy", STEPS, -0.6, -0.5, 0.0),
        ("full window, wearing", STEPS, -0.4, 0.1, 0.0),
        ("full window, nearly worn out", STEPS, 0.0, 1.0, 0.0),
        ("twelve cycles, the rest zeros", 12, -0.2, 0.0, 0.0),
        ("one cycle, the rest rubbish", 1, 0.2, 0.2, 1e4),
    ]):  # fmt: skip
        rng = np.random.default_rng([SEED, ix])
        wear = np.linspace(wear_from, wear_to, STEPS)[:, None]
        window = mean + wear * (worn - mean) + 0.4 * scale * rng.normal(size=(STEPS, len(SENSORS)))
        window[: STEPS - history] = padding
        yield name, {"window": rounded(window, 3)[None], "history": np.array([history], np.float32)}


def committed_cases(examples: bytes):
    """The same, read back: they cannot be invented again without the data."""
    for case in json.loads(examples)["cases"]:
        window = np.array(case["window"], np.float32).reshape(1, STEPS, len(SENSORS))
        yield case["name"], {"window": window, "history": np.array([case["history"]], np.float32)}


def files(model: bytes, cases) -> dict:
    channels = ", ".join(f'"s{sensor}"' for sensor in SENSORS)
    about = f"""\
# What the graph is given: T steps of these channels in this order, raw, a row a cycle, the newest last; and how many
# rows are real (1 to T), as history [1]. They stand at the end; those before may hold any finite value.
steps = {STEPS}
channels = [{channels}]
inputs = ["window", "history"]

# What it answers, in cycles: each [1], between 0 and cap. At the cap it means "at least".
outputs = ["rul", "rul_low", "rul_high"]
unit = "cycles"
cap = {CAP:.0f}
coverage = {COVERAGE}
"""
    return {
        GRAPH: model,
        GOLDEN: golden(model, cases, OUTPUTS),
        MANIFEST: manifest(model, NAME, VERSION, about, kind="rul"),
    }


def made(committed: pathlib.Path) -> dict:
    """The folder's files by name, with the weights and the golden inputs of the committed ones."""
    model = graph(*networks_of(constants_of((committed / GRAPH).read_bytes())))
    return files(model, committed_cases((committed / GOLDEN).read_bytes()))


def verify(networks: list, engine: np.ndarray):
    """Raises unless each network's graph answers as plain numpy does, for short and full histories."""
    from .training import reference

    for network in networks:
        runtime = session(graph([network]))
        for seen in (1, 7, STEPS - 1, STEPS, len(engine)):
            life, low, high = np.clip(reference(network, engine[max(0, seen - STEPS) : seen]), 0, CAP)
            found = np.array(estimate(runtime, *window_at(engine, seen)))
            if not np.abs(found - [life, min(low, life), max(high, life)]).max() <= TOLERANCE * CAP:
                raise ArithmeticError(f"after {seen} cycles the graph answers {found}, numpy {[life, low, high]}")


def train(committed: pathlib.Path, data: pathlib.Path) -> dict:
    """The folder's files by name, with new weights; in the card, figures of five such splits."""
    from .figures import conformal_margins, figures, report
    from .training import train as train_networks

    engines = read_engines(data / FILE)
    splits, files_made = [], {}
    for ix, (training, held_out) in enumerate(folds(range(len(engines)), SEED)):
        groups = folds(training, [SEED, ix])
        networks = train_networks(engines, [units for units, _ in groups], [SEED, ix])
        verify(networks, engines[training[0]])
        model = graph(networks, conformal_margins(engines, networks, groups))
        splits.append(figures(engines, model, training, held_out, SEED))
        print(f"split {ix + 1}: RMSE {splits[-1]['rmse']:.2f}", flush=True)
        # The first split's model is the one that is kept.
        files_made = files_made or files(model, invented_cases(engines, training))
    text = report(engines, len(files_made[GRAPH]), splits, SEED)
    before = (committed / CARD).read_text().partition(FIGURES_HEADING)[0]
    card = f"{before}{FIGURES_HEADING}\nWritten by `make.py --train`; nothing here is typed in.\n\n```text\n{text}```\n"
    return files_made | {CARD: card.encode()}


def measure(committed: pathlib.Path, data: pathlib.Path) -> str:
    """What the committed graph is worth on the engines that its training held out."""
    from .figures import figures, report

    engines = read_engines(data / FILE)
    model = (committed / GRAPH).read_bytes()
    training, held_out = folds(range(len(engines)), SEED)[0]
    return report(engines, len(model), [figures(engines, model, training, held_out, SEED)], SEED)
