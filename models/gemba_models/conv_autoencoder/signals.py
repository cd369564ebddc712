"""Invented signals of machines, and of what goes wrong with them. All that the auto-encoder is trained on.

A channel is a sum of what sensors show: noise of several colours, load steps behind a lag, oscillations, duty cycles
and drifts, sometimes quantised. It is standardised over its whole length, as calibration standardises a sensor.
"""

import numpy as np

# Of one invented channel, in steps.
LENGTH = 600
CHANNELS = 4_000
# Standard deviations from the mean within which the network is to reproduce what it is given.
NORMAL_RANGE = 3.0
# How far a fault moves a channel, in standard deviations.
FAULT_MIN, FAULT_MAX = 2.0, 12.0


def autoregressive(rng, count: int, memory) -> np.ndarray:
    """Noise whose neighbours agree by `memory` (0 white, near 1 red), with a deviation of one."""
    state = rng.normal(size=count)
    out = np.empty((count, LENGTH))
    for step in range(LENGTH):
        state = memory * state + np.sqrt(1 - memory**2) * rng.normal(size=count)
        out[:, step] = state
    return out


def load_steps(rng, count: int) -> np.ndarray:
    """A load that jumps between levels at random times, followed with a lag."""
    jumps = rng.random((count, LENGTH)) < 1.0 / rng.uniform(30, 400, (count, 1))
    lag = rng.choice([0.0, 0.5, 0.8, 0.95], count)
    level = rng.normal(size=count)
    state, out = level.copy(), np.empty((count, LENGTH))
    for step in range(LENGTH):
        level = np.where(jumps[:, step], rng.normal(size=count), level)
        state = lag * state + (1 - lag) * level
        out[:, step] = state
    return out


def oscillations(rng, count: int) -> np.ndarray:
    """Sines and duty cycles with periods of 8 to 200 steps whose strength wanders."""
    period = np.exp(rng.uniform(np.log(8), np.log(200), (count, 1)))
    phase = 2 * np.pi * (np.arange(LENGTH) / period + rng.random((count, 1)))
    strength = 1 + 0.3 * autoregressive(rng, count, 0.98)
    sharpness = rng.choice([0.0, 6.0], (count, 1), p=[0.7, 0.3])
    wave = np.where(sharpness > 0, np.tanh(sharpness * np.sin(phase)), np.sin(phase))
    return strength * wave


def drifts(rng, count: int) -> np.ndarray:
    """Straight, or a warming-up that levels off."""
    place = np.linspace(0, 1, LENGTH)
    warming = 1 - np.exp(-place * rng.uniform(1, 8, (count, 1)))
    shape = np.where(rng.random((count, 1)) < 0.5, place, warming)
    return shape * rng.choice([-1.0, 1.0], (count, 1)) * 3.0


def channels(rng) -> np.ndarray:
    """[CHANNELS,LENGTH], each with a mean of zero and a deviation of one."""
    parts = [
        autoregressive(rng, CHANNELS, 0.0),
        autoregressive(rng, CHANNELS, rng.uniform(0.3, 0.9, CHANNELS)),
        autoregressive(rng, CHANNELS, rng.uniform(0.95, 0.999, CHANNELS)),
        load_steps(rng, CHANNELS),
        oscillations(rng, CHANNELS),
        drifts(rng, CHANNELS),
    ]
    # Each channel is mostly one or two of them; a little noise is in all.
    shares = rng.gamma(0.35, size=(CHANNELS, len(parts)))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[:, 0] += 0.03
    signal = sum(np.sqrt(share)[:, None] * part for share, part in zip(shares.T, parts, strict=True))
    signal = (signal - signal.mean(axis=1, keepdims=True)) / signal.std(axis=1, keepdims=True)
    # A quarter of the sensors resolves no better than a step of up to a deviation.
    step = np.where(rng.random((CHANNELS, 1)) < 0.25, rng.uniform(0.05, 1.0, (CHANNELS, 1)), 0.0)
    quantised = np.where(step > 0, np.round(signal / np.maximum(step, 1e-9)) * step, signal)
    return quantised.astype(np.float32)


def windows(rng, signals: np.ndarray, count: int, steps: int) -> np.ndarray:
    """[count,steps] cut out of the signals at random."""
    start = rng.integers(0, LENGTH - steps + 1, count)
    return signals[rng.integers(0, len(signals), count)[:, None], start[:, None] + np.arange(steps)]


def disturbed(rng, clean: np.ndarray) -> np.ndarray:
    """The same windows, half of them with a fault somewhere: a jump, a ramp, a spike or a ringing."""
    count, steps = clean.shape
    start = rng.integers(-steps // 2, steps - 2, (count, 1))
    since = np.maximum(np.arange(steps) - start, 0)
    after = np.arange(steps) >= start
    short = after & (since < rng.integers(1, 6, (count, 1)))
    ringing = np.sin(2 * np.pi * since / rng.uniform(2, 12, (count, 1)))
    shapes = np.stack([after, since / steps, short, after * ringing])
    kind = rng.integers(0, len(shapes), count)
    size = rng.uniform(FAULT_MIN, FAULT_MAX, (count, 1)) * rng.choice([-1.0, 1.0], (count, 1))
    fault = size * shapes[kind, np.arange(count)]
    faulty = rng.random((count, 1)) < 0.5
    return (clean + np.where(faulty, fault, 0.0)).astype(np.float32)


def within_range(clean: np.ndarray) -> np.ndarray:
    """What the network is to give back."""
    return np.clip(clean, -NORMAL_RANGE, NORMAL_RANGE)
