"""Run all GPU benchmarks from a plain checkout: `python benchmarks/gpu.py`.

Prints the tables of each section and writes them to results/gpu.md. Each section runs in a separate process that is
stopped at its share of the time, so that a section that hangs or fails does not affect the others. Requires Linux,
Python 3.11 or later and torch 2.11 or later. If the packages of the service are missing, they are installed from
wheels/, which gpu_wheels.sh fills. The exit status is 1 if a result on the GPU differs from that on the CPU.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
WHEELS = HERE / "wheels"
sys.path[:0] = [str(SOURCE), str(HERE)]

from machine import markdown  # noqa: E402 - found through the path added above
from servers import end_family  # noqa: E402

# The module of each section, and the section's share of the time budget.
SECTIONS = {
    "ceiling": ("gpu_maps", 0.05),
    "right": ("gpu_right", 0.14),
    "translate": ("gpu_maps", 0.08),
    "fit": ("gpu_fit", 0.25),
    "neighbours": ("gpu_fit", 0.14),
    "served": ("gpu_serve", 0.17),
    "embed": ("gpu_serve", 0.09),
    "ddp": ("gpu_fit", 0.08),
}
TITLES = {
    "ceiling": "What the card reaches",
    "right": "The results are those of the CPU",
    "translate": "Translating",
    "fit": "Fitting",
    "neighbours": "Neighbours and alignment",
    "served": "Serving",
    "embed": "Embedding",
    "ddp": "One process with DDP",
}
SERVICE = ("bentoml", "starlette", "uvicorn", "orjson", "httptools", "uvloop", "prometheus_client", "httpx")
PACKAGES = ("torch", "numpy", "lightning", "timm", "transformers", "bentoml")
LEAST_ON_CPU_S = 90  # generous: on a CPU, which may be busy, sections only have to finish
NOT_ON_A_GPU = (
    "**Not measured on a GPU: this run was on the CPU at small sizes and only shows that every section runs.**"
)


def header(args: argparse.Namespace) -> str:
    """Return the head of the report: command, machine and versions.

    This package need not be installed, so its version is read from its source.
    """
    import torch

    import repstitch

    lines = [f"# On a GPU\n\n`{' '.join(['python benchmarks/gpu.py', *args.said])}`\n"]
    if args.device == "cpu":
        lines.append(f"{NOT_ON_A_GPU}\n")
        card = "no GPU used"
    else:
        card = f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB"
    versions = [f"repstitch {repstitch.__version__}", f"CUDA {torch.version.cuda}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} not installed")
    lines.append(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {card}, Python {platform.python_version()}, "
        f"{', '.join(versions)}\n"
    )
    lines.append(
        'TF32 is off (`torch.set_float32_matmul_precision("highest")`). Times are the median of several after one to '
        "warm up, with the device waited for; where a row says so, of one. A share is of what this card reached in the "
        "first section. The CPU cores beside it do a tenth of the work, so compare rates. Device memory is the most "
        "that was allocated, the rows among it.\n"
    )
    return "\n".join(lines)


def rendered(lines: list[dict]) -> str:
    """Return the tables of a section as Markdown, from the lines that the section wrote."""
    tables: dict[str, dict] = {}
    for line in lines:
        if "columns" in line:
            tables[line["table"]] = {"columns": line["columns"], "note": line["note"], "rows": [], "below": []}
        elif "row" in line:
            tables[line["table"]]["rows"].append([cell.replace("|", "/") for cell in line["row"]])
        elif "below" in line:
            tables[line["table"]]["below"].append(line["below"])
    parts = []
    for title, table in tables.items():
        parts.append(f"### {title}\n")
        parts += [f"{table['note']}\n"] if table["note"] else []
        parts += [markdown(table["columns"], table["rows"])] if table["rows"] else ["No rows.\n"]
        parts += [f"{text}\n" for text in table["below"]]
    return "\n".join(parts)


def read_lines(path: Path) -> list[dict]:
    """Return the lines that a section wrote, without a last line that was cut off."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def run_section(name: str, args: argparse.Namespace, limit: float, folder: Path, path: str) -> tuple[str, bool]:
    """Run a section in a separate process. Return its text, and whether it finished with all results exact."""
    rows, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    command = [sys.executable, str(HERE / "gpu.py"), "--section", name, "--rows", str(rows), "--device", args.device]
    command += ["--budget", str(args.budget), "--limit", str(limit)]
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only this program, which then ends the section and its servers
        )
    stopped = ""
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        stopped = f"Stopped at its limit of {limit:.0f} s."
    finally:
        end_family(process)
    taken = time.monotonic() - began
    lines = read_lines(rows)
    if process.returncode and not stopped:
        output_lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        cause = (
            f"signal {signal.Signals(-process.returncode).name}"
            if process.returncode < 0
            else f"status {process.returncode}"
        )
        stopped = f"Ended early ({cause}): {output_lines[-1][:500] if output_lines else 'it said nothing'}"
        sys.stderr.write("\n".join(output_lines[-30:]) + "\n")
    exact = not stopped and not any(line.get("inexact") for line in lines)
    parts = [f"## {TITLES[name]}\n", rendered(lines), f"**{stopped}**\n" if stopped else "", f"{taken:.0f} s.\n"]
    return "\n".join(part for part in parts if part), exact


def service_path(folder: Path) -> tuple[str, str]:
    """Return the PYTHONPATH entry of the service's packages, and why they are unavailable.

    The first is "" if they are installed, the second is "" if they are available.
    """
    if all(find_spec(name) for name in SERVICE):
        return "", ""
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if not wheels:
        return "", "The packages of the service are missing; run benchmarks/gpu_wheels.sh where there is a network."
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--target", str(target), *wheels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return "", (
            f"The wheels in benchmarks/wheels/ cannot be installed ({lines[-1] if lines else 'pip said nothing'}); run "
            f"`benchmarks/gpu_wheels.sh {platform.python_version().rpartition('.')[0]}` where there is a network."
        )
    return str(target), ""


def limit_of(name: str, chosen: list[str], args: argparse.Namespace, began: float) -> float:
    """Return the time limit of a section in seconds: its share, plus the time that earlier sections left over."""
    whole = sum(SECTIONS[each][1] for each in chosen)
    until = sum(SECTIONS[each][1] for each in chosen[: chosen.index(name) + 1])
    limit = args.budget * until / whole - (time.monotonic() - began)
    return max(limit, LEAST_ON_CPU_S if args.device == "cpu" else 1)


def run_all(args: argparse.Namespace) -> int:
    chosen = [name for name in SECTIONS if name in (args.only or SECTIONS)]
    out = args.out or (None if args.only else HERE / "results" / "gpu.md")
    began, status = time.monotonic(), 0
    text = header(args)
    print(text, flush=True)
    with tempfile.TemporaryDirectory(prefix="repstitch-gpu-") as temporary:
        folder = Path(temporary)
        for name in chosen:
            wheels, missing = service_path(folder) if name == "served" else ("", "")
            if missing:
                part, exact = f"## {TITLES[name]}\n\nLeft out. {missing}\n", True
            else:
                path = os.pathsep.join(filter(None, [str(SOURCE), wheels, os.environ.get("PYTHONPATH", "")]))
                part, exact = run_section(name, args, limit_of(name, chosen, args, began), folder, path)
            status = 1 if name == "right" and not exact else status
            text += "\n" + part
            print(part, flush=True)
            if out:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(text, encoding="utf-8")
    print(f"{time.monotonic() - began:.0f} s in all.", flush=True)
    return status


def one_section(args: argparse.Namespace) -> int:
    """Run one section in this process, which `run_section` started."""
    import torch
    from gpu_run import Run

    torch.set_float32_matmul_precision("highest")
    run = Run(args.device, args.budget, args.limit, args.rows, args.rows.parent / "ceilings.json")
    try:
        getattr(import_module(SECTIONS[args.section][0]), args.section)(run)
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=360, help="seconds for the whole run; sizes shrink below 360")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, help="file to write (default: results/gpu.md; none with --only)")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        return one_section(args)
    if args.budget <= 0:
        parser.error("--budget must be a number of seconds above 0")
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; pass --device cpu to check only that every section runs")
    args.said = sys.argv[1:]
    try:
        return run_all(args)
    except KeyboardInterrupt:
        print("Interrupted. Results of finished sections are in the output file, if there is one.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
