"""Everything that needs a GPU, in one command: build, tests, sanitizers, benchmark, report.

    python ops/check_gpu.py                  # on a machine with an NVIDIA GPU; about ten minutes
    python ops/check_gpu.py --interpreter    # without one: what Triton's interpreter and nvcc alone can show

On a GPU: builds the CUDA library; runs tests/ops; compares Triton and CUDA kernels with the formula in float64 in every
dtype; runs them under compute-sanitizer; measures them in float32 and bfloat16, forward and backward, against the
composite PyTorch forms, a stand-in for the public CUDA kernels (ops/benchmark/peers) and deformops, with the share of
the memory bandwidth. Writes check.json, report.md and the benchmark's files into --output, and with --readme the tables
into ops/README.md. Exit status: 0 if all passed, 1 if something failed, 2 without a GPU.

First: pip install deformops==3.0.1 (Python 3.12 or 3.13) torch-ms-deform-attn==0.1.1 transformers; they are optional.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "ops"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from benchmark import accuracy, machine  # noqa: E402
from benchmark.peers import public_kernel  # noqa: E402

KERNELS = ("triton", "cuda")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
NO_GPU = """There is no GPU here that torch can use, so nothing of the GPU kernels can be measured or run on a GPU.
    python ops/check_gpu.py --interpreter    checks what can be checked without: the Triton kernels in Triton's
                                             interpreter, and that nvcc compiles the CUDA sources"""

SMALL_CASE = (str(Path(__file__).resolve()), "--small-case")
# A library that is there is not asked about: that it does not load is a failure, which the step itself meets.
ASK_FOR_BACKEND = """
import sys
from sparse_detr.ops import available_backends, native
name = sys.argv[1]
library = native.status().get(name)
reason = None if library and library.path else available_backends()[name]
print("unavailable:", reason) if reason else print("available")
"""

Outcome = dict[str, Any]


class Skipped(Exception):
    """The reason why a step does not apply here."""


class Failed(Exception):
    """What went wrong in a step."""


def main() -> int:
    """Run the steps that fit the machine and report."""
    args = parse(sys.argv[1:])
    if args.small_case:
        print(check_accuracy(args.small_case, args.device, args.dtypes))
        return 0
    if not args.interpreter and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    steps = interpreter_steps(args) if args.interpreter else gpu_steps(args)
    outcomes = [perform(number, len(steps), *step) for number, step in enumerate(steps, start=1)]
    return write_report(args, outcomes)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/check_gpu"))
    parser.add_argument("--readme", type=Path, help="write the benchmark's tables between its markers")
    parser.add_argument("--interpreter", action="store_true", help="what can be run without a GPU")
    parser.add_argument("--quick", action="store_true", help="a benchmark of seconds, whose numbers say nothing")
    parser.add_argument("--small-case", choices=KERNELS, help="only compare this backend with the formula in float64")
    parser.add_argument("--device", default="cuda", help="of --small-case")
    parser.add_argument("--dtypes", nargs="+", default=list(accuracy.TOLERANCES), help="of --small-case")
    return parser.parse_args(arguments)


Step = tuple[str, Callable[[], str]]


def gpu_steps(args: argparse.Namespace) -> list[Step]:
    return [
        ("build the CUDA library", lambda: build_cuda_library(args.output, in_place=True)),
        ("tests/ops", lambda: run_tests("tests/ops")),
        *((f"{name} against float64", lambda name=name: small_case(name)) for name in KERNELS),
        *(
            (f"{name} under {tool}", lambda name=name, tool=tool: sanitize(name, tool))
            for name in KERNELS
            for tool in SANITIZERS
        ),
        ("benchmark", lambda: run_benchmark(args)),
    ]


def interpreter_steps(args: argparse.Namespace) -> list[Step]:
    return [
        ("nvcc compiles the CUDA library", lambda: build_cuda_library(args.output, in_place=False)),
        ("nvcc compiles the benchmark's stand-in", lambda: compile_stand_in(args.output)),
        ("triton against float64, interpreted", interpret),
        ("tests of the Triton kernels", lambda: run_tests("tests/ops/test_triton.py")),
        ("tests of the CUDA kernels' arithmetic", lambda: run_tests("tests/ops/test_cuda_arithmetic.py")),
    ]


def perform(number: int, total: int, name: str, step: Callable[[], str]) -> Outcome:
    print(f"==> [{number}/{total}] {name}", flush=True)
    start = time.monotonic()
    try:
        status, detail = "passed", step()
    except Skipped as reason:
        status, detail = "skipped", str(reason)
    except (Failed, public_kernel.CannotBuild) as reason:
        status, detail = "FAILED", str(reason)
    seconds = round(time.monotonic() - start, 1)
    print(f"    {status} ({seconds} s): {last_line(detail)}", flush=True)
    return {"name": name, "status": status, "seconds": seconds, "detail": detail}


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def command(*arguments: str, **environment: str) -> str:
    """Run Python on arguments and return its output. Raises `Failed` with the end of it."""
    return execute(sys.executable, *arguments, **environment)


def execute(*arguments: str, **environment: str) -> str:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        arguments,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode:
        raise Failed(f"{' '.join(arguments)}: exit status {result.returncode}\n{result.stdout[-4000:]}")
    return result.stdout


# Steps


def build_cuda_library(output: Path, *, in_place: bool) -> str:
    """Build the CUDA library where the package looks for it, or elsewhere, only to see that it compiles."""
    require_nvcc()
    folder = "build.NATIVE" if in_place else f"build.Path({str((output / 'native').resolve())!r})"
    code = f"import build; build.build({folder}, choice='cuda')"
    return command("-c", code, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "ops")]))


def require_nvcc() -> None:
    try:
        public_kernel.nvcc()
    except public_kernel.CannotBuild as reason:
        raise Skipped(str(reason)) from reason


def compile_stand_in(output: Path) -> str:
    require_nvcc()
    return str(public_kernel.compile_library(output / "stand_in"))


def run_tests(path: str) -> str:
    if not (ROOT / path).exists():
        raise Skipped(f"there is no {path}")
    return command("-m", "pytest", "-q", "-rs", path)


def skip_without(backend: str) -> None:
    """Raise `Skipped` if this machine lacks the backend. A new process is asked, after the build."""
    answer = last_line(command("-c", ASK_FOR_BACKEND, backend))
    if answer.startswith("unavailable: "):
        raise Skipped(answer.removeprefix("unavailable: "))


def small_case(backend: str) -> str:
    """Run the small case in a process of its own: after a failing kernel the process cannot use the GPU."""
    skip_without(backend)
    return command(*SMALL_CASE, backend)


def interpret() -> str:
    return command(*SMALL_CASE, "triton", "--device", "cpu", "--dtypes", "float32", TRITON_INTERPRET="1")


def check_accuracy(backend: str, device: str, dtypes: list[str]) -> str:
    """Return a line for each dtype. Raises `Failed` where one is beyond its tolerance."""
    lines = []
    for dtype in dtypes:
        found = accuracy.deviations(backend, device, dtype)
        worst = max(found, key=lambda name: found[name])
        lines.append(f"{backend}, {dtype}: within {found[worst]:.1e} ({worst})")
        if not found[worst] <= accuracy.TOLERANCES[dtype]:
            raise Failed(f"{lines[-1]}; allowed is {accuracy.TOLERANCES[dtype]}")
    if not accuracy.repeats_itself(backend, device):
        raise Failed(f"{backend}: two deterministic backward passes differ")
    return "\n".join([*lines, f"{backend}: the deterministic backward pass repeats bit for bit"])


def sanitize(backend: str, tool: str) -> str:
    """Run the small case under compute-sanitizer, each tensor in an allocation of its own."""
    skip_without(backend)
    found = compute_sanitizer()
    if found is None:
        raise Skipped("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    arguments = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--small-case",
        backend,
        "--dtypes",
        "float32",
        "bfloat16",
    ]
    output = execute(found, "--tool", tool, "--error-exitcode", "9", *arguments, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return output[-2000:]


def compute_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = os.pathsep.join([f"{home}/bin", f"{home}/compute-sanitizer", os.environ.get("PATH", "")])
    return shutil.which("compute-sanitizer", path=folders)


def run_benchmark(args: argparse.Namespace) -> str:
    arguments = ["--device", "cuda", "--dtypes", "float32", "bfloat16", "--output", str(args.output / "cuda.json")]
    arguments += ["--quick"] if args.quick else []
    arguments += ["--readme", str(args.readme.resolve())] if args.readme else []
    return command(str(ROOT / "ops" / "benchmark"), *arguments)


# Report


def write_report(args: argparse.Namespace, outcomes: list[Outcome]) -> int:
    """Write check.json and report.md; return the exit status."""
    device = "cpu" if args.interpreter else "cuda"
    results = {"interpreter": args.interpreter, "machine": machine.machine_record(device), "steps": outcomes}
    (args.output / "check.json").write_text(json.dumps(results, indent=1) + "\n")
    text = report_text(results)
    (args.output / "report.md").write_text(text)
    failed = sum(outcome["status"] == "FAILED" for outcome in outcomes)
    print(f"==> {len(outcomes)} steps, {failed} failed. Report: {args.output / 'report.md'}")
    return 1 if failed else 0


def report_text(results: dict[str, Any]) -> str:
    gpu = results["machine"]["gpu"]
    where = (
        f"On {gpu['name']}, torch {results['machine']['torch']}." if gpu else "No GPU: interpreted and compiled only."
    )
    rows = [
        f"| {outcome['name']} | {outcome['status']} | {outcome['seconds']} | {last_line(outcome['detail'])} |"
        for outcome in results["steps"]
    ]
    table = "\n".join(["| step | status | s | |", "|---|---|---|---|", *rows])
    details = "\n\n".join(f"## {outcome['name']}\n```\n{outcome['detail']}\n```" for outcome in results["steps"])
    return f"# GPU check\n{where} Commit {results['machine']['commit']}.\n\n{table}\n\n{details}\n"


if __name__ == "__main__":
    sys.exit(main())
