"""What a model is worth: conformal margins from engines its networks have not seen; figures from engines held out."""

import numpy as np

from ..onnx_graph import session
from .data import CAP, COVERAGE, CUTS, FOLDS, HIDDEN, QUANTILES, SENSORS, STEPS, draw_cuts, lives
from .graph import NAME, estimate_life, graph

# Histories at which the interval's margins are measured; between them they are interpolated. In cycles.
HISTORIES = (1, 5, 10, 20, 30, 50, 75, STEPS)


def weighted_quantile(values: list, level: float) -> float:
    """The quantile of all values, where each array in the list weighs the same."""
    flat = np.concatenate(values)
    weight = np.concatenate([np.full(len(array), 1.0 / len(array)) for array in values])
    order = np.argsort(flat, kind="stable")
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(flat[order][min(np.searchsorted(reached, level), len(flat) - 1)])


def conformal_margins(engines, networks, groups) -> np.ndarray:
    """[T,2]: how far below and above its interval a network must allow for, for each length of the history.

    Measured on engines that the network has not seen, after each of their cycles, with only so many watched. An engine
    weighs the same however long it lived. The level is that of split conformal prediction with as many engines.
    """
    measured = []
    for history in HISTORIES:
        below, above = [], []
        for network, (_, unseen) in zip(networks, groups, strict=True):
            runtime = session(graph([network]))
            for unit in unseen:
                answer = estimate_life(runtime, engines[unit], history, first=history)
                truth = lives(len(engines[unit]))[history - 1 :]
                below.append(answer[:, 1] - truth)
                above.append(truth - answer[:, 2])
        level = min(1.0, QUANTILES[1] * (1 + 1 / len(below)))
        measured.append((weighted_quantile(below, level), weighted_quantile(above, level)))
    every = np.arange(1, STEPS + 1)
    return np.stack([np.interp(every, HISTORIES, column) for column in zip(*measured, strict=True)], axis=1)


def at_cuts(engines, answers: dict, cuts) -> tuple:
    picked = [(answers[unit][seen - 1], lives(len(engines[unit]))[seen - 1]) for unit, seen in cuts]
    return np.array([answer for answer, _ in picked]), np.array([truth for _, truth in picked])


def rmse(answer, truth) -> float:
    return float(np.sqrt(np.mean((answer - truth) ** 2)))


def inside(answer, truth) -> np.ndarray:
    # A thousandth of a cycle for what f32 rounds at the cap.
    return (answer[:, 1] - 1e-3 <= truth) & (truth <= answer[:, 2] + 1e-3)


def nasa_score(answer, truth) -> np.ndarray:
    """Of each estimate, from the PHM08 challenge: late ones cost more than early ones. 0 is perfect."""
    late = answer - truth
    return np.where(late < 0, np.exp(-late / 13), np.exp(late / 10)) - 1


def clock(engines, training) -> dict:
    """The yardstick: for each cycle count, the mean capped life of the training engines that reached it. It sees no
    sensor. An engine older than all of them gets zero."""
    oldest = max(map(len, engines))
    table = np.zeros(oldest)
    for seen in range(1, oldest + 1):
        known = [lives(len(engines[unit]))[seen - 1] for unit in training if len(engines[unit]) >= seen]
        table[seen - 1] = np.mean(known) if known else 0.0
    return {unit: np.repeat(table[: len(engine), None], 3, axis=1) for unit, engine in enumerate(engines)}


def figures(engines, model: bytes, training, held_out, seed: int) -> dict:
    """What the model says of engines that it has never seen."""
    runtime = session(model)
    answers = {unit: estimate_life(runtime, engines[unit]) for unit in held_out}
    cuts = draw_cuts(engines, held_out, [seed, 0])
    answer, truth = at_cuts(engines, answers, cuts)
    held = inside(answer, truth)
    full = np.array([seen >= STEPS for _, seen in cuts])

    def part(which):
        return int(which.sum()), rmse(answer[which, 0], truth[which]), float(held[which].mean())

    found = {
        "cuts": len(cuts),
        "rmse": rmse(answer[:, 0], truth),
        "mae": float(np.mean(np.abs(answer[:, 0] - truth))),
        "nasa": float(nasa_score(answer[:, 0], truth).sum()),
        "coverage": float(held.mean()),
        "width": float(np.mean(answer[:, 2] - answer[:, 1])),
        "clock_rmse": rmse(at_cuts(engines, clock(engines, training), cuts)[0][:, 0], truth),
        "full": part(full),
        "short": part(~full),
        "below_cap": part(truth < CAP),
    }
    draws = [at_cuts(engines, answers, draw_cuts(engines, held_out, [seed, draw])) for draw in range(200)]
    by_draw = [rmse(answer[:, 0], truth) for answer, truth in draws]
    found["draws"] = (float(np.mean(by_draw)), *np.quantile(by_draw, [0.05, 0.95]).tolist())
    answer = np.concatenate([answers[unit] for unit in held_out])
    truth = np.concatenate([lives(len(engines[unit])) for unit in held_out])
    held, width, error = inside(answer, truth), answer[:, 2] - answer[:, 1], answer[:, 0] - truth
    found["bands"] = []
    for low, high in [(0, 25), (25, 50), (50, 75), (75, 100), (100, CAP), (CAP, CAP + 1)]:
        band = (truth >= low) & (truth < high)
        means = [float(values[band].mean()) for values in (error, held, width)]
        found["bands"].append((low, high, int(band.sum()), rmse(error[band], 0), *means))
    found["late"] = []
    for longest in HISTORIES:
        late = {unit: estimate_life(runtime, engines[unit], longest) for unit in held_out}
        answer, truth = at_cuts(engines, late, cuts)
        width = float(np.mean(answer[:, 2] - answer[:, 1]))
        found["late"].append((longest, rmse(answer[:, 0], truth), float(inside(answer, truth).mean()), width))
    return found


def report(engines, size: int, splits: list, seed: int) -> str:
    own = splits[0]
    lines = [
        f"Made by `make.py --train`, seed {seed}, from C-MAPSS FD001: {len(engines)} engines run to failure.",
        f"Graph: {size} bytes; {FOLDS} GRUs of {HIDDEN}, averaged; windows of {STEPS} cycles, {len(SENSORS)} sensors.",
        f"Truth and estimate are capped at {CAP:.0f} cycles. Cuts: {CUTS} an engine, uniform over its cycles.",
        "",
        f"The model in {NAME}/, on its {len(engines) // FOLDS} held-out engines, {own['cuts']} cuts:",
        f"  RMSE {own['rmse']:.2f} cycles, mean absolute error {own['mae']:.2f}, NASA score {own['nasa']:.0f} "
        f"(sum; {own['nasa'] / own['cuts']:.2f} a cut)",
        f"  interval made for {COVERAGE:.0%}: holds {own['coverage']:.0%}, mean width {own['width']:.1f} cycles",
        f"  a clock (the mean life of training engines of that age, no sensor): RMSE {own['clock_rmse']:.2f}",
    ]
    for key, what in [
        ("full", f"cuts with a full window ({STEPS} cycles or more)"),
        ("short", "cuts with a shorter history"),
        ("below_cap", f"cuts with a true life below {CAP:.0f}"),
    ]:
        count, error, held = own[key]
        lines.append(f"  {what}: {count}, RMSE {error:.2f}, interval holds {held:.0%}")
    mean, low, high = own["draws"]
    lines += [
        f"  200 draws of the cuts on the same engines: RMSE {mean:.2f} in the mean, 5th to 95th percentile "
        f"{low:.2f} to {high:.2f}",
        "",
        "All cycles of the held-out engines, by true life:",
        "  life       cycles   RMSE   bias  interval holds  its width",
    ]
    for low, high, count, error, bias, held, width in own["bands"]:
        life = f"{low:.0f}-{high:.0f}" if low < CAP else f"{CAP:.0f} or more"
        lines.append(f"  {life:<11}{count:>6} {error:>6.1f} {bias:>+6.1f} {held:>15.0%} {width:>10.1f}")
    lines += [
        "",
        "The same cuts, had the engine been watched for its last n cycles only:",
        "  n       RMSE  interval holds  its width",
    ]
    lines += [f"  {last:<4}{error:>8.2f}{held:>16.0%}{width:>11.1f}" for last, error, held, width in own["late"]]
    if len(splits) > 1:
        lines += [
            "",
            f"The procedure on {len(splits)} splits, each engine held out once (the first split is the model's own):",
        ]
        lines.append("  split   RMSE    MAE   NASA  interval holds  200 draws of the cuts (RMSE)   clock")
        for ix, split in enumerate(splits):
            draws = "{:.2f} ({:.2f} to {:.2f})".format(*split["draws"])
            lines.append(
                f"  {ix + 1:<5}{split['rmse']:>7.2f}{split['mae']:>7.2f}{split['nasa']:>7.0f}{split['coverage']:>16.0%}"
                f"{draws:>31}{split['clock_rmse']:>8.2f}"
            )
        for key, what in [("rmse", "RMSE"), ("mae", "MAE"), ("nasa", "NASA score"), ("coverage", "coverage")]:
            values = np.array([split[key] for split in splits])
            lines.append(f"  {what}: mean {values.mean():.2f}, standard deviation over splits {values.std(ddof=1):.2f}")
        mean = np.mean([split["draws"][0] for split in splits])
        lines.append(f"  RMSE over all splits and draws of cuts: {mean:.2f}")
    return "\n".join(lines) + "\n"
