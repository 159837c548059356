"""``python -m mutants``: how many small changes to the code do the tests see?

One change at a time: a comparison turned round, a number made larger, branches swapped, a sum made
a difference. Python: in a copy of the repository, with the tests that belong to a module.
``ssim_math.h``: in the CUDA emulator, with its quick checks. Prints those that no test saw; some
change nothing that anyone could see, so each is to be looked at. It takes an hour.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cuda_emulator import CSRC
from cuda_emulator.faults import check_values

ROOT = Path(__file__).resolve().parent.parent

# which tests a module is to be held by, those that take least first
TESTS = {
    "_autocast.py": "modules masks citizenship image_loss",
    "_border.py": "breadth ms_ssim",
    "_call.py": "bad_input breadth masks scikit_image",
    "_checks.py": "bad_input modules breadth",
    "_explain.py": "explain",
    "_fakes.py": "citizenship bad_input",
    "_filter.py": "masks breadth citizenship",
    "_masks.py": "masks breadth",
    "_multiscale.py": "ms_ssim",
    "_ops.py": "gradients image_loss ms_ssim masks",
    "_paths.py": "explain install",
    "_request.py": "breadth bad_input citizenship",
    "_terms.py": "image_loss bad_input masks",
    "_windows.py": "accuracy",
    "functional.py": "bad_input image_loss ms_ssim masks breadth",
    "metrics.py": "metrics",
    "modules.py": "modules image_loss ms_ssim",
    "reference.py": "breadth masks image_loss ms_ssim gradients",
}
SECONDS = 900  # a change may make a loop endless

_COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_COMBINED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}


class Mutant(NamedTuple):
    """One change: where, what, and the whole file with it."""

    file: str
    line: int
    what: str
    text: str


# ---- Python ----


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in place of a node, and what that is called."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARED:
        operator = _COMPARED[type(node.ops[0])]()
        changed = ast.Compare(node.left, [operator, *node.ops[1:]], node.comparators)
        yield "comparison", changed
    elif isinstance(node, ast.BinOp) and type(node.op) in _COMBINED:
        if not isinstance(node.left, (ast.JoinedStr, ast.Constant)):
            yield "operator", ast.BinOp(node.left, _COMBINED[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and, or", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", node.operand
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", node.operand
    elif isinstance(node, ast.IfExp):
        yield "branches", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If):
        yield "condition", ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "constant", ast.Constant(not node.value)
        elif isinstance(node.value, (int, float)):
            yield "constant", ast.Constant(node.value + 1)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.old:
            return ast.copy_location(self.new, node)
        return self.generic_visit(node)


def _inside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that are run: no annotations, defaults (tests/api.txt has those) or decorators."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                if not isinstance(statement, ast.FunctionDef):
                    yield from ast.walk(statement)


def python_mutants(name: str) -> list[Mutant]:
    """All changes to a module of ssim_fused."""
    text = (ROOT / "ssim_fused" / name).read_text()
    found = []
    for i, node in enumerate(_inside_functions(ast.parse(text))):
        for what, _ in _changes(node):
            tree = ast.parse(text)  # anew: a change must not stay
            old = list(_inside_functions(tree))[i]
            for other, new in _changes(old):
                if other == what:
                    changed = ast.unparse(ast.fix_missing_locations(_Replace(old, new).visit(tree)))
                    found.append(Mutant(name, old.lineno, what, changed))
    return found


def seen_in_python(mutant: Mutant) -> bool:
    """Whether a test of its module fails."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("ssim_fused", "tests", "benchmarks"):
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / part, copy / part, ignore=ignored)
        for part in ("pyproject.toml", "csrc", "examples", "docs", "setup.py", "README.md"):
            (copy / part).symlink_to(ROOT / part)
        (copy / "ssim_fused" / mutant.file).write_text(mutant.text)
        files = [f"tests/test_{test}.py" for test in TESTS[mutant.file].split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return True
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"{mutant.file}:{mutant.line}: {done.stdout.decode()[-2000:]}")
    return done.returncode != 0


# ---- the formulas ----

_MATH = (
    (r" \+ (?=\S)", " - "),
    (r"(?<=[\w)]) - (?=\S)", " + "),
    (r" \* (?=\S)", " + "),
    (r" < ", " > "),
    (r" > ", " < "),
    (r"half \*", "one_more_half *"),
    (r"= -d", "= d"),
)


def math_mutants() -> list[Mutant]:
    """Changes to csrc/ssim_math.h, of its formulas."""
    text = (CSRC / "ssim_math.h").read_text()
    code = re.sub(r"//.*", lambda found: " " * len(found[0]), text)
    start = code.index("SSIM_HOST_DEVICE Terms<T> terms(")
    found = []
    for pattern, new in _MATH:
        for place in re.finditer(pattern, code):
            if place.start() < start:
                continue
            word = "(half + half) *" if "half" in new else new
            changed = text[: place.start()] + word + text[place.end() :]
            line = text.count("\n", 0, place.start()) + 1
            found.append(Mutant("ssim_math.h", line, f"{place[0].strip()} -> {word}", changed))
    return found


def seen_in_emulator(mutant: Mutant) -> bool:
    """Whether the emulator's quick checks fail."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder) / "csrc"
        shutil.copytree(CSRC, csrc)
        (csrc / mutant.file).write_text(mutant.text)
        return check_values("images", csrc).returncode != 0


# ---- all ----


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--most", type=int, default=12, help="changes to each file, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("files", nargs="*", help="of ssim_fused, or ssim_math.h; all")
    given = parser.parse_args()
    chosen: list[Mutant] = []
    for name in given.files or [*TESTS, "ssim_math.h"]:
        all_of_it = math_mutants() if name == "ssim_math.h" else python_mutants(name)
        order = random.Random(f"{given.seed} {name}")
        chosen += order.sample(all_of_it, min(given.most, len(all_of_it)))

    def is_seen(mutant: Mutant) -> bool:
        return (seen_in_emulator if mutant.file.endswith(".h") else seen_in_python)(mutant)

    seen = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, found in zip(chosen, pool.map(is_seen, chosen)):
            seen += found
            if not found:
                print(f"{mutant.file}:{mutant.line}: {mutant.what}: not seen", flush=True)
    print(f"{seen} of {len(chosen)} seen")


if __name__ == "__main__":
    main()
