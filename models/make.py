"""Makes the models in this folder: their graphs, golden vectors and manifests.

    python3 -m venv .venv && .venv/bin/pip install -r models/requirements.txt
    .venv/bin/python models/make.py            # writes the folders, trains nothing
    .venv/bin/python models/make.py --check    # fails if what is committed is not what this makes, or breaks a promise

    .venv/bin/pip install -r models/requirements-train.txt
    .venv/bin/python models/make.py --train conv-autoencoder            # new weights; with --check: compares only
    .venv/bin/python models/make.py --measure turbofan-rul --data DATA  # what the committed graph is worth

A model without weights is made again from nothing and must give the same bytes. One with weights is made again from
the weights in its committed graph. Beside that every folder with a model.toml must keep its promises, your own too:
the graph's hash, its inputs and outputs, and its answers to the golden vectors.
"""

import argparse
import os
import pathlib
import sys

from gemba_models import conv_autoencoder, kernel_regression, pca, turbofan_rul
from gemba_models.folder import MANIFEST, broken_promises, differing

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
# Each has a NAME, and `made`: from what is committed to the files that can be made without training.
MODELS = {model.NAME: model for model in (kernel_regression, pca, conv_autoencoder, turbofan_rul)}
# Some have weights, and so `train`: to all files; some `measure` what they are worth.
TRAINED = [name for name, model in MODELS.items() if hasattr(model, "train")]
MEASURED = [name for name, model in MODELS.items() if hasattr(model, "measure")]


def write(folder: pathlib.Path, files: dict):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        print(f"{folder / name}: {len(content)} bytes")


def check() -> int:
    """Prints a line for each model, and each fault to standard error. The process's exit code."""
    faults = 0
    for name in sorted({path.parent.name for path in HERE.glob(f"*/{MANIFEST}")} | set(MODELS)):
        folder = HERE / name
        try:
            wrong = broken_promises(folder)
            if name in MODELS:
                wrong += [
                    f"{file}: not what make.py makes; run models/make.py and commit the result"
                    for file in differing(folder, MODELS[name].made(folder))
                ]
        except Exception as error:  # a damaged folder may fail in any library
            wrong = [f"cannot be checked: {error!r}"]
        for line in wrong:
            print(f"{name}: {line}", file=sys.stderr)
        print(f"{name}: {'wrong' if wrong else 'as promised'}")
        faults += len(wrong)
    return 1 if faults else 0


def train(name: str, data: pathlib.Path, compare: bool) -> int:
    # One core, so that the same command adds in the same order.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    folder = HERE / name
    files = MODELS[name].train(folder, data)
    if not compare:
        write(folder, files)
        return 0
    wrong = differing(folder, files)
    print(f"{name}: " + (f"{', '.join(wrong)}: not the committed bytes" if wrong else "the committed bytes again"))
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    parser.add_argument("--train", choices=TRAINED, metavar="MODEL", help=f"{' or '.join(TRAINED)}")
    parser.add_argument("--measure", choices=MEASURED, metavar="MODEL", help=f"{' or '.join(MEASURED)}")
    parser.add_argument("--data", type=pathlib.Path, default=DATA, help="recordings (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.measure:
        print(MODELS[arguments.measure].measure(HERE / arguments.measure, arguments.data))
        return 0
    if arguments.train:
        return train(arguments.train, arguments.data, arguments.check)
    if arguments.check:
        return check()
    for name, model in MODELS.items():
        write(HERE / name, model.made(HERE / name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
