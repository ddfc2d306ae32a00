"""Measure the structure of the package: files, functions, parameters, complexity, public names, words.

    python benchmarks/house.py            this checkout
    python benchmarks/house.py PATH       another checkout, such as a worktree of an older commit

Counts come from the syntax tree. The package is imported only to count its public names.
"""

import argparse
import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Return the number of lines of a function's body, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(function: Function) -> int:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def public_dicts(tree: ast.Module) -> list[str]:
    """Return the names of public functions and methods of a module that are annotated to return a bare dict."""
    nodes = list(tree.body)
    nodes += [node for cls in tree.body if isinstance(cls, ast.ClassDef) for node in cls.body]
    return [
        node.name
        for node in nodes
        if isinstance(node, Function)
        and not node.name.startswith("_")
        and node.name != "to_dict"
        and node.returns is not None
        and re.fullmatch(r"dict( \| None)?", ast.unparse(node.returns))
    ]


def complexity(function: Function) -> int:
    """Return the cyclomatic complexity (McCabe 1976), counting every condition.

    Conditions are branches, loops, exception handlers, each further operand of `and` and `or`, conditional expressions,
    comprehensions and their conditions, and assertions.
    """
    total = 1
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.IfExp | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.Assert):
            total += 1
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
    return total


def names_at_import(source: Path) -> int:
    code = "import repstitch; print(len([name for name in dir(repstitch) if not name.startswith('_')]))"
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source)}, capture_output=True, text=True)
    return int(run.stdout)


def words(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").split()) if path.is_file() else 0


def lines(folder: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py"))


def house(root: Path) -> dict[str, str]:
    """Return the rows of the table for one checkout."""
    package = root / "src" / "repstitch"
    files = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in files.items()}
    lengths = [len(text.splitlines()) for path, text in files.items() if path.name != "__init__.py"]
    defined = [function for tree in trees.values() for function in functions(tree)]
    bodies = [body_lines(function) for function in defined]
    counts = list(map(complexity, defined))
    flat = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    folders = [path for path in package.iterdir() if (path / "__init__.py").is_file()]
    return {
        "flat modules / folders at the top": f"{len(flat)} / {len(folders)}",
        "median / longest file": f"{statistics.median(lengths):.0f} / {max(lengths)}",
        "function body, median / longest": f"{statistics.median(bodies):.0f} / {max(bodies)}",
        "functions": str(len(defined)),
        "cyclomatic > 10 / > 20 / max": f"{sum(count > 10 for count in counts)} / "
        f"{sum(count > 20 for count in counts)} / {max(counts)}",
        "most parameters": str(max(map(parameters, defined))),
        "names at `import repstitch`": str(names_at_import(root / "src")),
        "public functions returning a bare dict": str(sum(len(public_dicts(tree)) for tree in trees.values())),
        "README words": str(words(root / "README.md")),
        "docs pages": str(len(list((root / "docs").rglob("*.md")))),
        "lines of source / tests": f"{lines(root / 'src'):,} / {lines(root / 'tests'):,}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("roots", nargs="*", type=Path, default=[Path(__file__).parents[1]], metavar="PATH")
    roots = parser.parse_args().roots
    columns = [house(root) for root in roots]
    print("| | " + " | ".join(root.resolve().name for root in roots) + " |")
    print("|---|" + "---|" * len(roots))
    for row in columns[0]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns) + " |")


if __name__ == "__main__":
    main()
