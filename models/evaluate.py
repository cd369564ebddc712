"""How good the detection is: makes models/RESULTS.md with the program itself, on recordings of real machines.

    ./run evaluate        # builds gemba-edge, then runs this

Every figure of ours comes from `gemba-edge backtest`, the same code that judges in the daemon; the yardsticks beside it (an alarm
that is always on, a clock without a sensor, plain T²+Q) see the same rows. Nothing of the recordings is written anywhere.
"""

import argparse
import bisect
import csv
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

SEEDS = 5
START = 1_600_000_000
HEAD_STEP = 100
# SKAB's columns that are labels.
LABELS = ("anomaly", "changepoint")
TEP_FAULTS = (1, 2, 4, 8, 14)
# The first faulty sample of a test recording.
TEP_ONSET = 160


def skab(path):
    """(rows, labels) of a recording of SKAB; labels are None where it has none."""
    with open(path) as file:
        table = list(csv.reader(file, delimiter=";"))
    names = table[0]
    sensors = [i for i, name in enumerate(names) if name != "datetime" and name not in LABELS]
    rows = np.array([[float(row[i]) for i in sensors] for row in table[1:]])
    label = np.array([float(row[names.index("anomaly")]) for row in table[1:]]) if "anomaly" in names else None
    return rows, label


def nab(path, windows):
    """(rows, labels) of a single temperature of NAB: the labels number its failure windows."""
    with open(path) as file:
        table = list(csv.DictReader(file))
    label = np.zeros(len(table), int)
    for number, (first, last) in enumerate(windows, 1):
        for i, row in enumerate(table):
            if first[:19] <= row["timestamp"] <= last[:19]:
                label[i] = number
    return np.array([[float(row["value"])] for row in table]), label


def tep(path):
    rows = np.loadtxt(path)
    return rows.T if rows.shape[0] == 52 else rows


# --- detectors: (rows, rows to calibrate on) -> an alarm for each row behind them, and what led it ----------------


class Ours:
    def __init__(self, binary, folder, model=None, models_dir=None):
        self.binary, self.folder = binary, pathlib.Path(folder)
        self.extra = ["--model", model, "--models-dir", str(models_dir)] if model else []
        self.name = f"gemba, {model}" if model else "**gemba, built-in**"
        self.summary = None

    def __call__(self, rows, calibration, period_s=1):
        recording, output = self.folder / "recording.csv", self.folder / "verdicts.csv"
        with open(recording, "w") as file:
            file.write("time," + ",".join(f"s{i}" for i in range(rows.shape[1])) + "\n")
            for i, row in enumerate(rows):
                file.write(f"{START + i * period_s}," + ",".join(map(repr, row.tolist())) + "\n")
        command = [self.binary, "backtest", str(recording), "--calibrate-rows", str(calibration), "--output", str(output), "--json"]
        self.summary = json.loads(subprocess.run(command + self.extra, check=True, capture_output=True, text=True).stdout)
        with open(output) as file:
            verdicts = list(csv.DictReader(file))
        assert len(verdicts) == len(rows), f"{len(verdicts)} verdicts for {len(rows)} rows"
        assert not any(v["score"] for v in verdicts[:calibration]), "a row of the calibration was scored"
        return np.array([int(v["alarm"]) for v in verdicts[calibration:]])


class AlwaysOn:
    name = "always on"

    def __call__(self, rows, calibration, period_s=1):
        return np.ones(len(rows) - calibration, int)


class Clock:
    """The rows in which SKAB's anomalies usually are."""

    name = "a clock (rows 570 to 969)"

    def __call__(self, rows, calibration, period_s=1):
        place = np.arange(calibration, len(rows))
        return ((place >= 570) & (place < 970)).astype(int)


class PlainPca:
    """T² and Q of 90 % of the variance, limits at a quantile of the calibration; an alarm where either is over its limit."""

    def __init__(self, quantile=0.99, lift=1.0):
        self.quantile, self.lift, self.name = quantile, lift, "plain T²+Q"

    def __call__(self, rows, calibration, period_s=1):
        learnt = rows[:calibration]
        mean, scale = learnt.mean(0), learnt.std(0)
        usable = scale > 0
        z = (rows[:, usable] - mean[usable]) / scale[usable]
        variances, directions = np.linalg.eigh(np.cov(z[:calibration].T))
        variances, directions = variances[::-1], directions[:, ::-1]
        kept = int(np.searchsorted(np.cumsum(variances) / variances.sum(), 0.9)) + 1
        along = z @ directions[:, :kept]
        t2 = (along**2 / variances[:kept]).sum(1)
        q = ((z - along @ directions[:, :kept].T) ** 2).sum(1)
        limits = [self.lift * np.quantile(statistic[:calibration], self.quantile) for statistic in (t2, q)]
        return ((t2 > limits[0]) | (q > limits[1])).astype(int)[calibration:]


# --- protocols -----------------------------------------------------------------------------------------------------


def counts(alarm, label):
    alarm, label = alarm > 0, label > 0
    return np.array([(alarm & label).sum(), (alarm & ~label).sum(), (~alarm & label).sum(), (~alarm & ~label).sum()])


def figures(total):
    hit, false, missed, quiet = total
    return 2 * hit / (2 * hit + false + missed), 100 * false / (false + quiet)


def plain(detector, recordings):
    total = sum(counts(detector(rows, 400), label[400:]) for rows, label in recordings)
    return figures(total)


def extended_path(onset, first, calibration, added, rng):
    """Rows before the onset: what lies between calibration and onset is played back and forward."""
    lowest = first + calibration
    walk, place, step = [], onset - 1, -1
    for _ in range(added // 2):
        if not lowest <= place + step < onset:
            step = -step
        place += step
        walk.append(place)
    back = walk[::-1][1:] + [onset - 1] if walk else []
    return np.array(list(range(first, onset)) + walk + back)


def extended(detector, recordings):
    results, hits, early, delays = [], [], [], []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        total = np.zeros(4)
        for rows, label in recordings:
            onset = int(np.argmax(label > 0))
            calibration = int(rng.integers(250, 401))
            first = min(int(rng.integers(0, onset - calibration - 10)), 150)
            path = extended_path(onset, first, calibration, int(rng.integers(0, 1_601)), rng)
            played = np.vstack([rows[path], rows[onset:]])
            truth = np.concatenate([np.zeros(len(path)), label[onset:]])[calibration:]
            alarm = detector(played, calibration)
            total += counts(alarm, truth)
            begin = int(np.argmax(truth > 0))
            event = alarm[begin : begin + int((truth > 0).sum())]
            hits.append(bool(event.any()))
            early.append(bool(alarm[:begin].any()))
            if event.any():
                delays.append(int(np.argmax(event > 0)))
        results.append(figures(total))
    f1, far = np.mean(results, axis=0)
    return f1, far, 100 * np.mean(hits), 100 * np.mean(early), float(np.median(delays)) if delays else float("nan")


def normal(detector, head):
    in_alarm, rows, opened = 0, 0, 0
    for first in range(0, len(head) - 400 - 60, HEAD_STEP):
        alarm = detector(head[first:], 400)
        in_alarm, rows = in_alarm + alarm.sum(), rows + len(alarm)
        opened += int(alarm[0]) + int((np.diff(alarm) > 0).sum())
    return 100 * in_alarm / rows, opened / (rows / 3_600)


def process(detector, folder):
    """Detection rate of each fault, and the false-alarm rate over all rows without one."""
    learnt = tep(folder / "d00.dat")
    rates, quiet = {}, []
    for fault in (0, *TEP_FAULTS):
        test = tep(folder / f"d{fault:02}_te.dat")
        alarm = detector(np.vstack([learnt, test]), len(learnt), 180)
        if fault:
            rates[fault] = alarm[TEP_ONSET:].mean()
        quiet.append(alarm[:TEP_ONSET] if fault else alarm)
    return rates, 100 * np.concatenate(quiet).mean()


def single(detector, folder):
    """Windows hit, windows, alarms in a window, alarms beside them, and the share of time in alarm, over the single temperatures."""
    windows = json.loads((folder / "windows.json").read_text())
    hit, of, inside, beside, in_alarm, rows = 0, 0, 0, 0, 0, 0
    for name, period_s in (("ambient", 3_600), ("machine", 300)):
        file = f"{name}_temperature_system_failure.csv"
        values, label = nab(folder / file, windows[f"realKnownCause/{file}"])
        alarm, label = detector(values, 300, period_s), label[300:]
        begun = label[np.flatnonzero(np.diff(alarm, prepend=0) > 0)]
        hit, of = hit + len(set(label[alarm > 0]) - {0}), of + len(set(label) - {0})
        inside, beside = inside + (begun > 0).sum(), beside + (begun == 0).sum()
        in_alarm, rows = in_alarm + alarm.sum(), rows + len(alarm)
    return hit, of, inside, beside, 100 * in_alarm / rows


def fair_pca(folder, far):
    """T²+Q with the lowest limits that keep its false alarms over all rows without a fault at `far` %: those of its calibration do not."""
    lifts = np.arange(1.0, 10.0, 0.01)
    detectors = [PlainPca(lift=lift) for lift in lifts]
    # The higher the limits, the fewer alarms.
    lowest = bisect.bisect_left(detectors, True, key=lambda detector: process(detector, folder)[1] <= far)
    if lowest == len(lifts):
        raise SystemExit("evaluate: T²+Q has too many false alarms at any limit")
    detectors[lowest].name = f"plain T²+Q, limits × {lifts[lowest]:.2f}"
    return detectors[lowest]


def leads(ours, recordings):
    """One channel at a time is moved by eight times its own noise, halfway; how often it leads the alarms from then on."""
    right, alarms, tries, raised = 0, 0, 0, 0
    for rows, label in recordings:
        healthy = rows[: int(np.argmax(label > 0))]
        for channel in range(healthy.shape[1]):
            disturbed = healthy.copy()
            begin = 400 + (len(healthy) - 400) // 2
            spread = np.diff(healthy[:400, channel]).std() / np.sqrt(2)
            if spread == 0:
                continue
            disturbed[begin:, channel] += 8 * spread
            ours(disturbed, 400)
            before = alarms
            for alarm in ours.summary["alarms"]:
                began = np.datetime64(alarm["start"].rstrip("Z")).astype("datetime64[s]").astype(int) - START
                if began > begin:
                    alarms += 1
                    right += alarm["lead"] == f"s{channel}"
            tries, raised = tries + 1, raised + (alarms > before)
    return right, alarms, tries, raised


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="gemba-edge")
    parser.add_argument("--bench", help="judge_bench: how long a verdict takes")
    parser.add_argument("--data", default=str(pathlib.Path(__file__).parents[2] / "shared/data"))
    parser.add_argument("--models", nargs="*", default=["kernel-regression", "pca", "conv-autoencoder"])
    parser.add_argument("--write", action="store_true", help="write models/RESULTS.md")
    arguments = parser.parse_args()
    data, here = pathlib.Path(arguments.data), pathlib.Path(__file__).parent
    if not data.is_dir():
        print(f"evaluate: skipped: there are no recordings in {data}", file=sys.stderr)
        return 0
    recordings = [skab(path) for path in sorted((data / "skab/valve1").glob("*.csv"), key=lambda path: int(path.stem))]
    head, _ = skab(data / "skab/anomaly-free-head.csv")
    lines = []

    def say(line=""):
        print(line, flush=True)
        lines.append(line)

    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(arguments.binary, folder)
        others = [Ours(arguments.binary, folder, model, here) for model in arguments.models if (here / model).is_dir()]
        say("| SKAB valve1, calibrated on rows 0 to 399 | F1 | FAR % |")
        say("|---|---|---|")
        for detector in [ours, *others, AlwaysOn(), Clock(), PlainPca()]:
            f1, far = plain(detector, recordings)
            say(f"| {detector.name} | {f1:.3f} | {far:.1f} |")
        say()
        say(f"| the same, extended ({SEEDS} seeds) | F1 | FAR % | events hit % | alarming before onset % | median delay s |")
        say("|---|---|---|---|---|---|")
        for detector in [ours, *others, AlwaysOn(), Clock(), PlainPca()]:
            f1, far, hit, early, delay = extended(detector, recordings)
            say(f"| {detector.name} | {f1:.3f} | {far:.1f} | {hit:.0f} | {early:.0f} | {delay:.0f} |")
        say()
        say("| normal running, calibrated on any 400 rows | time in alarm % | false alarms an hour |")
        say("|---|---|---|")
        for detector in [ours, *others, PlainPca()]:
            share, rate = normal(detector, head)
            say(f"| {detector.name} | {share:.2f} | {rate:.2f} |")
        say()
        say("| Tennessee Eastman, detection rate | " + " | ".join(f"fault {fault}" for fault in TEP_FAULTS) + " | mean | FAR % |")
        say("|---|" + "---|" * (len(TEP_FAULTS) + 2))
        for detector in [ours, *others, fair_pca(data / "tep", 5.0), fair_pca(data / "tep", 0.0)]:
            rates, far = process(detector, data / "tep")
            say(
                f"| {detector.name} | "
                + " | ".join(f"{rates[fault]:.3f}" for fault in TEP_FAULTS)
                + f" | {np.mean(list(rates.values())):.4f} | {far:.2f} |"
            )
        say()
        say("| single temperatures (NAB), calibrated on 300 steps | failure windows hit | alarms in them | alarms beside them | time in alarm % |")
        say("|---|---|---|---|---|")
        hit, of, inside, beside, share = single(ours, data / "nab")
        say(f"| {ours.name} | {hit} of {of} | {inside} | {beside} | {share:.2f} |")
        say()
        right, alarms, tries, raised = leads(ours, recordings)
        say(
            f"One channel moved by eight times its noise, each in turn on each recording: {raised} of {tries} raised an alarm (a channel that wanders"
            f" may be there by itself), and the channel led {right} of {alarms} alarms ({100 * right / max(alarms, 1):.1f} %)."
        )
    if arguments.bench:
        say()
        say(subprocess.run([arguments.bench], check=True, capture_output=True, text=True).stdout.strip())
    say()
    say("Remaining life of turbofans (C-MAPSS FD001), the committed graph on its held-out engines:")
    say()
    measure = [sys.executable, str(here / "make.py"), "--measure", "turbofan-rul", "--data", str(data)]
    say("```text\n" + subprocess.run(measure, check=True, capture_output=True, text=True).stdout.strip() + "\n```")
    if arguments.write:
        page = here / "RESULTS.md"
        text = page.read_text()
        before, _, rest = text.partition("<!-- figures -->\n")
        _, _, after = rest.partition("<!-- end -->\n")
        page.write_text(before + "<!-- figures -->\n" + "\n".join(lines) + "\n<!-- end -->\n" + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
