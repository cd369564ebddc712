"""C-MAPSS FD001: engines run to failure, how they are split, and what of them a model gets to see and to say.

Each engine is an array [cycles, sensors] of raw values from its first cycle to its failure.
"""

import pathlib

import numpy as np

# Sensors of FD001 that tell anything. The others stand still, or (6) flicker between two values.
SENSORS = [2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21]
# Before it: unit, cycle, three settings that hardly change in FD001.
FIRST_SENSOR_COLUMN = 5
# A healthy engine does not show how long it has left: above this, "at least this" is the answer. In cycles.
CAP = 125.0
# Cycles in a window (T): long enough to see where this engine started from.
STEPS = 100
# Of a network's state, and its answers: the life, and a low and a high quantile of it.
HIDDEN = 24
HEADS = 3
# The share of true lives that the interval is made to hold.
COVERAGE = 0.8
QUANTILES = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)
FOLDS = 5
CUTS = 5


def read_engines(path: pathlib.Path) -> list:
    """One array [cycles, sensors] for each engine, from its first cycle to its failure."""
    table = np.loadtxt(path)
    columns = [FIRST_SENSOR_COLUMN + sensor - 1 for sensor in SENSORS]
    return [table[table[:, 0] == unit][:, columns].astype(np.float32) for unit in np.unique(table[:, 0])]


def lives(cycles: int) -> np.ndarray:
    """The capped remaining life after each of an engine's cycles."""
    return np.minimum(np.arange(cycles)[::-1], CAP).astype(np.float32)


def folds(units, seed) -> list:
    """(all but the group, the group) for each of five groups, dealt at random."""
    groups = np.array_split(np.random.default_rng(seed).permutation(units), FOLDS)
    return [(np.setdiff1d(units, group), np.sort(group)) for group in groups]


def window_at(engine: np.ndarray, seen: int, longest: int = STEPS) -> tuple:
    """The window after `seen` cycles of which the last `longest` were watched, and how many of its rows are real.
    They stand at its end; before them are zeros, which the graph ignores."""
    rows = engine[max(0, seen - min(longest, STEPS)) : seen]
    window = np.zeros((1, STEPS, len(SENSORS)), np.float32)
    window[0, STEPS - len(rows) :] = rows
    return window, np.array([len(rows)], np.float32)


def draw_cuts(engines, units, seed) -> list:
    """(unit, cycles seen) pairs: five different ones an engine, any from 1 to the cycle before the last."""
    rng = np.random.default_rng(seed)
    return [(unit, cut) for unit in units for cut in rng.choice(np.arange(1, len(engines[unit])), CUTS, replace=False)]
