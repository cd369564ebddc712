"""Adam as both trainings use it. Needs jax, and so is imported by training only."""

import jax
import jax.numpy as jnp


def first_state(weights) -> tuple:
    """(weights, first moments, second moments, weights to keep)."""
    zeros = jax.tree.map(jnp.zeros_like, weights)
    return weights, zeros, zeros, weights


def step(state, number, gradient, *, rate: float, updates: int, decay: float = 0.0, averaging: float):
    """Adam with decoupled weight decay, the gradient's length at most one, the rate rising and then falling.

    The weights to keep are a moving average over about 1 / (1 - averaging) updates."""
    weights, first, second, kept = state
    length = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda leaf: leaf * jnp.minimum(1.0, 1.0 / (length + 1e-9)), gradient)
    rate = rate * jnp.minimum(1.0, (number + 1) / 50) * (1 + jnp.cos(jnp.pi * number / updates)) / 2
    first = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, first, gradient)
    second = jax.tree.map(lambda old, new: 0.999 * old + 0.001 * new**2, second, gradient)
    unbias = 1 - 0.9 ** (number + 1), 1 - 0.999 ** (number + 1)
    weights = jax.tree.map(
        lambda w, m, v: w - rate * (m / unbias[0] / (jnp.sqrt(v / unbias[1]) + 1e-8) + decay * w),
        weights, first, second,
    )  # fmt: skip
    kept = jax.tree.map(lambda old, new: averaging * old + (1 - averaging) * new, kept, weights)
    return weights, first, second, kept
