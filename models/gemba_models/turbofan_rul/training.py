"""Trains small GRUs, several at once, each on engines of its own. The only part that needs jax.

A network answers after every row of a window: the life, and a low and a high quantile of it, as shares of the cap.
"""

import functools

import numpy as np

from .data import CAP, HEADS, HIDDEN, QUANTILES, SENSORS, STEPS, lives

# These, and the networks' size, were chosen by cross-validation within the 80 engines of the first split.
BATCH = 32
UPDATES = 600
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.1
DROPOUT = 0.1
PINBALL_WEIGHT = 1.0
# The share of windows that start late, as if the engine had not been watched before.
LATE = 0.5
# The weights that are kept are a moving average over about 1 / (1 - this) updates.
AVERAGING = 0.99


def batch(engines, units, mean, scale, rng) -> tuple:
    """Random windows of random engines, with the life left after every row. Half of them start late: else a short
    history would come to mean a young engine, and one that is watched from mid-life on would be judged far too well."""
    rows = np.zeros((BATCH, STEPS, len(SENSORS)), np.float32)
    life = np.zeros((BATCH, STEPS), np.float32)
    real = np.zeros((BATCH, STEPS), np.float32)
    for ix, unit in enumerate(rng.choice(units, BATCH)):
        engine = engines[unit]
        seen = rng.integers(1, len(engine) + 1)
        longest = rng.integers(1, STEPS + 1) if rng.random() < LATE else STEPS
        count = min(seen, longest)
        rows[ix, STEPS - count :] = (engine[seen - count : seen] - mean) / scale
        life[ix, STEPS - count :] = lives(len(engine))[seen - count : seen] / CAP
        real[ix, STEPS - count :] = 1
    # The answer after the last row counts most; a window of many rows for more than one of few, by the square root.
    importance = real * np.linspace(0, 1, STEPS, dtype=np.float32)
    return rows, real, life, importance / np.sqrt(importance.sum(axis=1, keepdims=True))


@functools.cache
def trainer():
    """(first weights, one update), both for several networks at once. jax is only needed here."""
    import jax
    import jax.numpy as jnp

    from .. import adam

    def first_weights(key):
        keys = jax.random.split(key, 3)
        width = len(SENSORS) + 1

        def normal(key, rows, columns):
            return jax.random.normal(key, (rows, columns)) / jnp.sqrt(rows)

        return {
            "input": normal(keys[0], width, 3 * HIDDEN),
            "recurrent": normal(keys[1], HIDDEN, 3 * HIDDEN),
            # Of the gates z and r alone. An update gate that starts nearly shut remembers.
            "gates": jnp.concatenate([jnp.full(HIDDEN, 2.0), jnp.zeros(HIDDEN)]),
            "head": 0.3 * normal(keys[2], HIDDEN, HEADS),
            "offset": jnp.array([0.7, 0.6, 0.8]),
        }

    def answers(weights, rows, real, key):
        # A row that is not real is zero in every column, the column of ones too, and the candidate state has no other
        # bias: so the state stays exactly zero until the first real row. The graph does the same.
        ones = jnp.ones((*rows.shape[:2], 1))
        given = (jnp.concatenate([rows, ones], -1) * real[..., None]) @ weights["input"]
        given = given + jnp.concatenate([weights["gates"], jnp.zeros(HIDDEN)])

        def step(state, given):
            kept = state @ weights["recurrent"]
            z, r = jnp.split(jax.nn.sigmoid(given[:, : 2 * HIDDEN] + kept[:, : 2 * HIDDEN]), 2, -1)
            candidate = jnp.tanh(given[:, 2 * HIDDEN :] + r * kept[:, 2 * HIDDEN :])
            state = (1 - z) * candidate + z * state
            return state, state

        _, states = jax.lax.scan(step, jnp.zeros((rows.shape[0], HIDDEN)), given.swapaxes(0, 1))
        kept = jax.random.bernoulli(key, 1 - DROPOUT, (rows.shape[0], 1, HIDDEN)) / (1 - DROPOUT)
        return (states.swapaxes(0, 1) * kept) @ weights["head"] + weights["offset"]

    def loss(weights, rows, real, life, importance, key):
        answer = answers(weights, rows, real, key)
        squared = (life - answer[..., 0]) ** 2
        level = jnp.array(QUANTILES)
        above = life[..., None] - answer[..., 1:]
        pinball = jnp.maximum(level * above, (level - 1) * above).sum(-1)
        return ((squared + PINBALL_WEIGHT * pinball) * importance).sum() / importance.sum()

    def update(state, number, inputs, key):
        gradient = jax.grad(loss)(state[0], *inputs, key)
        return adam.step(
            state, number, gradient, rate=LEARNING_RATE, updates=UPDATES, decay=WEIGHT_DECAY, averaging=AVERAGING
        )

    def start(seed, networks):
        return adam.first_state(jax.vmap(first_weights)(jax.random.split(jax.random.key(seed), networks)))

    def all_updates(state, number, inputs, seed):
        key = jax.random.fold_in(jax.random.key(seed), number)
        keys = jax.random.split(key, inputs[0].shape[0])
        return jax.vmap(update, in_axes=(0, None, 0, 0))(state, number, inputs, keys)

    return start, jax.jit(all_updates)


def train(engines, training_sets, seed: list) -> list:
    """A network for each set of engines: its weights, and the mean and scale of its sensors."""
    start, update = trainer()
    scaling = []
    for units in training_sets:
        rows = np.concatenate([engines[unit] for unit in units])
        scaling.append((rows.mean(axis=0), rows.std(axis=0)))
    rngs = [np.random.default_rng([*seed, ix]) for ix in range(len(training_sets))]
    key_seed = int(np.random.default_rng(seed).integers(2**31))
    state = start(key_seed, len(training_sets))
    for number in range(UPDATES):
        batches = [
            batch(engines, units, *scales, rng) for units, scales, rng in zip(training_sets, scaling, rngs, strict=True)
        ]
        state = update(state, number, tuple(np.stack(part) for part in zip(*batches, strict=True)), key_seed)
    kept = {name: np.asarray(value) for name, value in state[3].items()}
    return [
        {name: value[ix] for name, value in kept.items()} | {"mean": mean, "scale": scale}
        for ix, (mean, scale) in enumerate(scaling)
    ]


def reference(network: dict, rows: np.ndarray) -> np.ndarray:
    """A network's answer to raw rows, in cycles, without padding and in plain numpy: what its graph must agree with."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    state = np.zeros(HIDDEN)
    for row in (rows - network["mean"]) / network["scale"]:
        given = np.append(row, 1.0) @ network["input"]
        kept = state @ network["recurrent"]
        gates = sigmoid(given[: 2 * HIDDEN] + kept[: 2 * HIDDEN] + network["gates"])
        z, r = np.split(gates, 2)
        state = (1 - z) * np.tanh(given[2 * HIDDEN :] + r * kept[2 * HIDDEN :]) + z * state
    return CAP * (state @ network["head"] + network["offset"])
