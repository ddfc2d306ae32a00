#!/usr/bin/env bash
# Collects the wheels that the service and pytest need on a GPU machine without a network (Linux on x86_64).
# What the project needs beside its service (torch, lightning, ...) is there already, in versions of its own.
# Exit status: 0 done, 1 it failed or the wheels are too large, 2 the arguments are refused or .venv is missing.
set -euo pipefail
usage="usage: benchmarks/gpu_wheels.sh [--list] [PYTHON_VERSION] [FOLDER] (--list downloads nothing)"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
most_mb=60
fail() { echo "gpu_wheels: $2" >&2; exit "$1"; }

list=no
if [[ ${1-} == --list ]]; then list=yes; shift; fi
version=${1-3.12} folder=${2-$root/benchmarks/wheels}
[[ $# -le 2 && $version != -* && $folder && $folder != -* ]] || fail 2 "$usage"
[[ $version == 3.11 || $version == 3.12 ]] || fail 2 "PYTHON_VERSION must be 3.11 or 3.12; got '$version'."
[[ -x $python ]] || fail 2 "there is no .venv to read the dependencies from; run 'make .venv/.ready' first."

# The installed packages say what each needs; on what condition is decided for the other machine, not for this one.
pins=$("$python" - "$root" "$version" <<'END'
import sys, tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

root, version = Path(sys.argv[1]), sys.argv[2]
there = {"python_version": version, "python_full_version": f"{version}.0", "platform_machine": "x86_64"}
there |= {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}

def closure(requirements, without=()):
    todo, seen = [(Requirement(line), "") for line in requirements], set()
    while todo:
        needed, extra = todo.pop()
        name = canonicalize_name(needed.name)
        if name in without or (needed.marker and not needed.marker.evaluate(there | {"extra": extra})):
            continue
        for wanted in {(name, each) for each in ("", *needed.extras)} - seen:
            seen.add(wanted)
            try:
                todo += [(Requirement(line), wanted[1]) for line in requires(name) or []]
            except PackageNotFoundError as error:
                if not without:  # what is not carried need not be installed here
                    sys.exit(f"gpu_wheels: {error.name} is needed there and is missing in .venv; install it first.")
    return {name for name, _ in seen}

project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
lines = [line for line in (root / "constraints.txt").read_text().splitlines() if "==" in line]
pins = {canonicalize_name(line.split("==")[0]): line for line in lines}
# Only newer releases of typer bring pydantic, so the other machine may lack it; it is small and is carried.
installed = closure(project["dependencies"] + extras["encoders"], without={"pydantic"})
carried = sorted(closure([*extras["serve"], "pytest"]) - installed)
if unpinned := [name for name in carried if name not in pins]:
    sys.exit(f"gpu_wheels: constraints.txt gives no version of {', '.join(unpinned)}.")
print(*(pins[name] for name in carried), sep="\n")
END
)
if [[ $list == yes ]]; then echo "$pins"; exit; fi

folder=$("$python" -c 'import os, sys; print(os.path.abspath(sys.argv[1]))' "$folder")
if [[ -L $folder || (-e $folder && ! -d $folder) ]] ||
    { [[ -d $folder ]] && [[ $(find "$folder" -mindepth 1 ! \( -type f -name '*.whl' \)) ]]; }; then
    fail 2 "$folder is not a folder of nothing but wheels, so it is not replaced; give another FOLDER."
fi
mkdir -p "$(dirname "$folder")"
new=$(mktemp -d "$folder.XXXXXX") # beside it, so that one rename puts the whole set in place
trap 'rm -rf "$new"' EXIT

download() {
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        --platform=manylinux{_2_28,_2_17,2014,_2_5,1}_x86_64 -d "$new" "$@" &>"$new/log"
}
# shellcheck disable=SC2086 # one word per package
if ! download $pins; then
    for pin in $pins; do # one at a time, as one package that has no wheel stops all; such a one is built
        download "$pin" ||
            "$python" -m pip wheel -q --no-deps --no-binary="${pin%%==*}" -w "$new" "$pin" &>"$new/log" ||
            fail 1 "$pin cannot be had for Python $version: $(grep -m 1 ERROR "$new/log" || tail -n 1 "$new/log")"
    done
fi
rm "$new/log"
for wheel in "$new"/*.whl; do # one built here with compiled code would not load there
    [[ $wheel =~ -(any|manylinux[^-]*)\.whl$ ]] ||
        fail 1 "${wheel##*/} holds code compiled here, not for the other machine."
done
mb=$(($(cat "$new"/*.whl | wc -c) / 1000000 + 1)) # rounded up
echo "$(wc -w <<<"$pins") wheels, $mb MB, for Python $version on Linux x86_64"
((mb <= most_mb)) || fail 1 "$mb MB is more than $most_mb MB, so they are not put in place."
chmod 755 "$new"
[[ ! -d $folder ]] || rm -r "$folder"
mv "$new" "$folder"
