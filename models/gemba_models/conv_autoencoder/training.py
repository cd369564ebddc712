"""Trains the auto-encoder on invented signals. The only part that needs jax."""

import numpy as np

from . import signals
from .network import STEPS, first_weights, reproduce

SEED = 1
BATCH = 512
UPDATES = 6_000
LEARNING_RATE = 4e-3
AVERAGING = 0.998
# Each so many updates the signals are drawn anew.
FRESH_EVERY = 500
REPORT_EVERY = 500


def trained() -> dict:
    """The weights by name. The network is shown windows, some with a fault, and is to give back the window as it was
    without: what it cannot or must not reproduce is the score."""
    import jax
    import jax.numpy as jnp

    from .. import adam

    def loss(weights, given, wanted):
        return jnp.mean((reproduce(weights, given) - wanted) ** 2)

    @jax.jit
    def update(state, number, given, wanted):
        error, gradient = jax.value_and_grad(loss)(state[0], given, wanted)
        return adam.step(state, number, gradient, rate=LEARNING_RATE, updates=UPDATES, averaging=AVERAGING), error

    rng = np.random.default_rng(SEED)
    state = adam.first_state(first_weights(rng))
    errors = []
    for number in range(UPDATES):
        if number % FRESH_EVERY == 0:
            machine = signals.channels(rng)
        clean = signals.windows(rng, machine, BATCH, STEPS)
        state, error = update(state, number, signals.disturbed(rng, clean), signals.within_range(clean))
        errors.append(error)
        if (number + 1) % REPORT_EVERY == 0:
            print(f"{number + 1} of {UPDATES} updates: squared error {np.mean(errors[-REPORT_EVERY:]):.4f}", flush=True)
    return {name: np.asarray(value) for name, value in state[3].items()}
