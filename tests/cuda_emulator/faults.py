"""Do the checks of the CUDA kernels see faults? Each is planted, its check must turn red.

``python -m cuda_emulator.faults`` plants all of them, which takes a quarter of an hour on two
cores, and writes what was seen to faults_seen.json, together with a digest of the sources: cut
short, it goes on where it was. Of faults that are planted in another way than before, it plants
those alone. The tests plant a few, and fail where the record is of other sources.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from . import CSRC, HERE, digest, kernel_headers
from .mutations import MUTATIONS, VOLUME_MUTATIONS, Mutation, planted
from .sanitizers import FOUND, SANITIZERS, run_sanitized

RECORD = HERE / "faults_seen.json"
TESTS = HERE.parent


@dataclass(frozen=True)
class Family:
    """Kernels with their faults, the module that checks values, and the program for sanitizers."""

    mutations: dict[str, Mutation]
    module: str
    program: str


FAMILIES = {
    "images": Family(MUTATIONS, "cuda_emulator", "sanitized.cpp"),
    "volumes": Family(VOLUME_MUTATIONS, "cuda_emulator.volume", "volume_sanitized.cpp"),
}


def check_values(family: str, csrc: Path = CSRC) -> subprocess.CompletedProcess:
    """The quick checks, in a process of its own: Python keeps a module that it has loaded."""
    command = [sys.executable, "-m", FAMILIES[family].module, str(csrc)]
    return subprocess.run(command, cwd=TESTS, capture_output=True, text=True)


def what_was_seen(family: str, name: str) -> str:
    """What the check that must see a fault says of it; nothing where it does not see it."""
    mutations = FAMILIES[family].mutations
    with tempfile.TemporaryDirectory() as folder:
        csrc = planted(name, Path(folder), mutations)
        sanitizer = mutations[name].seen_by
        if sanitizer in SANITIZERS:
            said = run_sanitized(FAMILIES[family].program, sanitizer, csrc).stderr
            return FOUND[sanitizer] if FOUND[sanitizer] in said else ""
        done = check_values(family, csrc)
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return "it wrote outside an array"
    found = re.search(r"AssertionError: (.*)|(\d+ threads have left)", done.stderr)
    if found is None:  # it must not fail in any other way
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return (found[1] or found[2]).strip()


def sources_digest() -> str:
    """Of everything that decides what is seen: kernels, emulator, checks."""
    checks = [path for path in HERE.glob("*.py") if path.name != "mutations.py"]
    sources = [*kernel_headers(CSRC), *HERE.glob("*.cpp"), *HERE.glob("*.h"), *checks]
    return digest([*sorted(sources), TESTS / "tables.py"])


def entry(mutation: Mutation, said: str) -> dict[str, str]:
    """What the record has of a fault: how it was planted, and what was said."""
    return {"old": mutation.old, "new": mutation.new, "by": mutation.seen_by, "said": said}


def is_seen(record: dict, family: str, name: str) -> bool:
    """Whether the record has this fault, planted as it would be now."""
    found = record["seen"][family].get(name)
    return bool(found) and found == entry(FAMILIES[family].mutations[name], found["said"])


def main() -> None:
    """Plant every fault that was not yet seen in these sources; fail where one is not."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    now = sources_digest()
    if record.get("digest") != now:
        record = {"digest": now, "seen": {family: {} for family in FAMILIES}}
    failed = False
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        planting = {
            pool.submit(what_was_seen, family, name): (family, name)
            for family, of in FAMILIES.items()
            for name in of.mutations
            if not is_seen(record, family, name)
        }
        for done in as_completed(planting):
            family, name = planting[done]
            error = done.exception()
            said = "" if error else done.result()
            print(f"{family}, {name}: {said or error or 'NOT SEEN'}", flush=True)
            failed |= not said
            if said and sources_digest() == now:
                record["seen"][family][name] = entry(FAMILIES[family].mutations[name], said)
                RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    if failed or sources_digest() != now:
        raise SystemExit("not every fault was seen, or the sources have changed meanwhile")


if __name__ == "__main__":
    main()
