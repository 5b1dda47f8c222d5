"""Measure files of `sparse-detr export` beside the model in PyTorch: how long an export takes, size and speed.

    python scripts/measure_export.py --readme docs/export.md
    python scripts/measure_export.py --config-file CONFIG --size 96x128 --rounds 1

Protocol: a model with random weights is exported by the command, as it is and in its inference form; files, model and
optimised model then detect on one random image in turn, one thread, CPU time of the process, median of the rounds after
one that does not count. Files and times are kept in the folder, so that the command can be stopped and goes on where it
was.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from sparse_detr.analysis.machine import allocator_name, cpu_model, num_cpus
from sparse_detr.analysis.tables import fill_readme, markdown_table
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.errors import run_script
from sparse_detr.export import ExportedFile
from sparse_detr.files import write_text_atomically
from sparse_detr.inference import optimize

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "projects/SparseDETR/configs/sparse_detr_r50_rho10.py"
NO_WEIGHTS = "train.init_checkpoint="
FORMS = {"as it is": [], "optimised": ["--optimize"]}
BLOCK = "export"
Results = dict[str, Any]


def main() -> int:
    """Measure what is missing and print the table."""
    args = parse_arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    record = args.folder / f"{args.size}.json"
    results: Results = json.loads(record.read_text()) if record.is_file() else {"exports": {}, "times": {}}
    results["machine"] = f"{cpu_model()} ({num_cpus()} CPUs), PyTorch {torch.__version__}"
    torch.set_num_threads(1)
    weights = make_weights(args)
    files = {f"{form} {kind}": (form, kind) for form in FORMS for kind in args.formats}
    for number, (name, (form, kind)) in enumerate(files.items()):
        if name not in results["exports"]:
            print(f"export {number + 1} of {len(files)}: {name}, {eta(results, len(files) - number)}", flush=True)
            results["exports"][name] = export(args, weights, file_of(args, form, kind), FORMS[form])
            write_text_atomically(record, json.dumps(results, indent=1))
    actions = make_actions(args, weights)
    height, width = map(int, args.size.split("x"))
    image = torch.rand(3, height, width) * 255
    for turn in range(args.rounds + 1):
        for name, run in actions.items():
            if len(results["times"].setdefault(name, [])) >= args.rounds:
                continue
            start = time.process_time()
            run(image)
            if turn:
                results["times"][name].append((time.process_time() - start) * 1000)
        print(f"round {turn} of {args.rounds}", flush=True)
        write_text_atomically(record, json.dumps(results, indent=1))
    text = report(results, args)
    print(text)
    if args.readme:
        fill_readme(args.readme, BLOCK, text)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(CONFIG), metavar="FILE")
    parser.add_argument("--size", default="480x640", metavar="HxW", help="of the image whose detection is timed")
    parser.add_argument("--formats", nargs="+", default=["onnx", "pt2"], choices=["onnx", "pt2"])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="on which file and model are compared")
    parser.add_argument("--folder", type=Path, default=Path("output/measure_export"), help="for files and results")
    parser.add_argument("--readme", metavar="FILE", help="a file whose block `export` gets the table")
    return parser.parse_args()


def eta(results: Results, left: int) -> str:
    """Return how long the exports that are left may take, in words."""
    known = [found["seconds"] for found in results["exports"].values()]
    return f"about {left * statistics.fmean(known) / 60:.0f} minutes left" if known else "some minutes each"


def file_of(args: argparse.Namespace, form: str, kind: str) -> Path:
    """Return the path of an exported file."""
    return args.folder / f"{Path(args.config_file).stem}_{form.replace(' ', '_')}.{kind}"


def make_weights(args: argparse.Namespace) -> Path:
    """Return a checkpoint of random weights."""
    path = args.folder / f"{Path(args.config_file).stem}.pth"
    if not path.is_file():
        torch.manual_seed(0)
        torch.save({"model": load(args).state_dict()}, path)
    return path


def load(args: argparse.Namespace) -> Any:
    """Return the model of the config on the CPU, in eval mode."""
    return build_detector(load_config(args.config_file, [NO_WEIGHTS]), device="cpu").eval()


def export(args: argparse.Namespace, weights: Path, file: Path, options: list[str]) -> dict[str, Any]:
    """Write a file by the command; return its CPU seconds, its MiB and what the command said of the comparison."""
    words = ["--config-file", args.config_file, "--weights", str(weights), "--output", str(file), "--force", *options]
    words += ["--images", *args.images] if args.images else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "sparse_detr.cli", "export", *words, "--opts", NO_WEIGHTS]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = [line for line in done.stdout.splitlines() if "detections agree" in line]
    return {"seconds": seconds, "mebibytes": file.stat().st_size / 2**20, "parity": said}


def make_actions(args: argparse.Namespace, weights: Path) -> dict[str, Callable[[torch.Tensor], Any]]:
    """Return what is timed: image (3, H, W) -> detections."""
    model = load(args)
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])

    def of_model(model: Any) -> Callable[[torch.Tensor], Any]:
        def run(image: torch.Tensor) -> Any:
            with torch.no_grad():
                return model([{"image": image, "height": image.shape[1], "width": image.shape[2]}])

        return run

    def of_file(path: Path) -> Callable[[torch.Tensor], Any]:
        file = ExportedFile(path)
        return lambda image: file(image[None], torch.tensor([image.shape[1:]]))

    actions = {"as it is PyTorch": of_model(model), "optimised PyTorch": of_model(optimize(model))}
    return actions | {f"{form} {kind}": of_file(file_of(args, form, kind)) for form in FORMS for kind in args.formats}


def report(results: Results, args: argparse.Namespace) -> str:
    """Return the table and the protocol in Markdown."""
    base = statistics.median(results["times"]["as it is PyTorch"])
    rows = []
    for name, times in results["times"].items():
        form, runs_as = name.rsplit(" ", 1)
        written, median = results["exports"].get(name), statistics.median(times)
        size = [""] * 2 if written is None else [f"{written['seconds']:.0f}", f"{written['mebibytes']:.0f}"]
        rows.append([runs_as, form, f"{median:.0f}", f"{base / median:.2f}x", *size])
    table = markdown_table(["", "model", "ms", "against PyTorch as it is", "export, s", "MiB"], rows)
    return (
        f"{table}\n\n{Path(args.config_file).stem}, one image of {args.size}, random weights, {results['machine']}, "
        f"one thread, CPU time, median of {args.rounds}, allocator: {allocator_name()}; `scripts/measure_export.py`."
    )


if __name__ == "__main__":
    run_script(main)
