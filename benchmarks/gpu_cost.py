"""``python -m benchmarks.gpu_cost``: what the CUDA kernels cost, counted without a GPU.

Compiles the kernel header with nvcc for each architecture and prints registers, shared memory and
occupancy; disassembles it and prints the instruction mix; and, from the cut that the launcher would
choose, work and memory traffic a pixel with halos, and a roofline prediction. Predictions are
labelled as such: none of this has run on a GPU.

Needs nvcc, and for the instruction mix nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm (PyPI).
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from release import tables

ROOT = Path(__file__).resolve().parent.parent
TASKS = ["value", "map", "gradient", "gradients", "backward", "backwards"]
LAYOUTS = ["streaming", "tile"]
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]
# architecture -> shared memory of a multiprocessor in KiB, threads it holds; CUDA C++ Programming
# Guide, table "Technical Specifications per Compute Capability"
LIMITS = {
    "75": (64, 1024),
    "80": (164, 2048),
    "86": (100, 1536),
    "89": (100, 1536),
    "90": (228, 2048),
    "100": (228, 2048),
    "120": (100, 1536),
}
REGISTERS = 65536  # of a multiprocessor


@dataclass(frozen=True)
class Gpu:
    """What a roofline needs; the makers' data sheets."""

    name: str
    architecture: str
    multiprocessors: int
    clock_ghz: float
    bandwidth_gb: float


GPUS = [
    Gpu("H100 SXM", "90", 132, 1.98, 3350),
    Gpu("RTX 4090", "89", 128, 2.52, 1008),
]

_GEOMETRY = """
#include <cstdio>
#include <cstdlib>
#include "ssim_cuda_geometry.h"
int main(int, char** a) {
  using namespace ssim_fused;
  const Task task = static_cast<Task>(std::atoi(a[1]));
  const Geometry g = choose_geometry(std::atoi(a[2]), std::atoi(a[3]), std::atoi(a[4]),
                                     std::atoi(a[5]), 11, 11, false, false, task, 4,
                                     std::atoi(a[6]));
  std::printf("%d %d %d %d %d %d %d %lld %d %d %d %d %d %d", static_cast<int>(g.layout), g.tiles,
              g.tile_w, g.bands, g.band_h, g.planes, g.threads, g.blocks, g.shared_words() * 4,
              g.step, g.runs, g.gradient_runs, g.across_rows, derivative_maps(task));
}
"""


def _run(*command: object, **settings) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **settings)
    if done.returncode:
        sys.exit(f"{words[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


class Programs:
    """Programs compiled once in a scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = folder / "geometry.cpp"
        source.write_text(_GEOMETRY)
        self.program = folder / "geometry"
        _run("c++", "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", source, "-o", self.program)

    def geometry(self, task: str, shape: tuple[int, ...], multiprocessors: int) -> dict[str, int]:
        """The cut that the launcher would choose."""
        said = _run(self.program, TASKS.index(task), *shape, multiprocessors).split()
        names = "layout tiles tile_w bands band_h planes threads blocks shared step runs"
        return dict(zip([*names.split(), "gradient_runs", "across_rows", "maps"], map(int, said)))

    def compile(self, nvcc: Path, architecture: str) -> tuple[Path, str]:
        """The float32, 11-tap kernels of a plain call as one cubin, and what ptxas said."""
        source = self.folder / "kernels.cu"
        lines = ['#include "ssim_cuda_kernel.h"', "using namespace ssim_fused;"]
        lines += [
            f"template __global__ void ssim_fused::ssim_kernel<float, Layout::{layout}, "
            f"Task::{task}, !has_plain<float>(Layout::{layout}, Task::{task})>"
            "(const __grid_constant__ Problem<float>);"
            for task in TASKS
            for layout in LAYOUTS
        ]
        source.write_text("\n".join(lines))
        cubin = self.folder / f"{architecture}.cubin"
        flags = ["-std=c++20", "-O3", f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin"]
        return cubin, _run(nvcc, *flags, f"-I{ROOT / 'csrc'}", source, "-o", cubin)


def kernel_of(mangled: str) -> tuple[str, str]:
    """Layout and task in a kernel's mangled name."""
    layout, task = re.search(r"6LayoutE(\d).*4TaskE(\d)", mangled).groups()
    return LAYOUTS[int(layout)], TASKS[int(task)]


def registers(said: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Kernel to registers and bytes spilled, from ptxas -v."""
    found = {}
    pattern = (
        r"entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers"
    )
    for name, stores, loads, count in re.findall(pattern, said, re.DOTALL):
        found[kernel_of(name)] = (int(count), int(stores) + int(loads))
    return found


def occupancy(architecture: str, used: int, geometry: dict[str, int]) -> tuple[int, int]:
    """Blocks on a multiprocessor, and the percentage of the threads that it can hold."""
    shared_kib, threads = LIMITS[architecture]
    warps = geometry["threads"] // 32
    by_registers = REGISTERS // (-(-used // 8) * 8 * 32 * warps)
    by_shared = shared_kib * 1024 // (geometry["shared"] + 1024)
    blocks = min(by_registers, by_shared, threads // geometry["threads"])
    return blocks, round(100 * blocks * geometry["threads"] / threads)


KINDS = {
    "multiply-adds": r"FFMA",
    "other float": r"F(?:ADD|MUL|SETP|SEL|MNMX)",
    "special": r"MUFU",
    "shared loads": r"LDS",
    "of 128 bits": r"LDS\.128",
    "shared stores": r"STS",
    "global loads": r"LDG",
    "global stores": r"STG",
    "barriers": r"BAR",
}


def disassembler() -> Path | None:
    """nvdisasm, on PATH or beside this Python."""
    places = [shutil.which("nvdisasm"), Path(sys.prefix) / "bin/nvdisasm"]
    places += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/**/bin/nvdisasm"))
    return next((Path(place) for place in places if place and Path(place).exists()), None)


def mixes(tool: Path, cubin: Path) -> dict[tuple[str, str], Counter]:
    """Kernel to how often each kind of instruction stands in the kernel's code."""
    found = {}
    for section in _run(tool, "-c", cubin).split(".section\t")[1:]:
        name = re.match(r"\s*\.text\.(\S+?),", section)
        if name is None:
            continue
        code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)", section)
        counts = Counter(
            {kind: sum(bool(re.match(p, c)) for c in code) for kind, p in KINDS.items()}
        )
        counts["all"] = len(code)
        found[kernel_of(name[1])] = counts
    return found


# ---- work a pixel ----


# For an item of each phase (a row of a column of moments, a window, a column of a row of a
# derivative, a row of a column of a derivative), streaming and tile: words of shared memory read,
# loads that read them, and instructions beside the multiply-adds, as they stand on the way of an
# inner block between the barriers of sm_86's code (paths for edges left out), of a value and of a
# gradient; what a step takes beside items is with "down".
WORDS = {"down": (0, 12), "across": (16, 24), "back across": (4, 4), "back down": (1, 11)}
LOADS = {"down": (0, 6), "across": (4, 12), "back across": (1, 1), "back down": (1, 11)}
OTHER = (
    {"down": (27.1, 90), "across": (34.5, 67)},
    {"down": (31.6, 90), "across": (63, 133), "back across": (2.2, 15), "back down": (4.3, 30)},
)
PROLOGUE = ((500, 350), (550, 350))  # instructions of a thread, once


def _parts(size: int, count: int, each: int, reach: int) -> list[tuple[int, int, int, int]]:
    """Of each tile or band: begin, end, and what lies up to `reach` around it in the image."""
    begins = (i * each for i in range(count))
    ends = [(begin, min(begin + each, size)) for begin in begins if begin < size]
    return [(begin, end, max(begin - reach, 0), min(end + reach, size)) for begin, end in ends]


def work(g: dict[str, int], shape: tuple[int, ...]) -> dict[str, float]:
    """Arithmetic and traffic a pixel of one launch, halos and partly filled runs counted."""
    n, c, h, w = shape
    planes, pixels = n * c, n * c * h * w
    gradient, tile = g["maps"] > 0, g["layout"] == 1
    reach, step, run = 5 if gradient else 0, g["step"], 2 if tile else 4
    bands = _parts(h, g["bands"], g["band_h"], reach)
    tiles = _parts(w, g["tiles"], g["tile_w"], reach)

    def up(rows: int) -> int:
        return -(-rows // step) * step

    rows = planes * sum(step if tile else up(to - start) for _, _, start, to in bands)  # of windows
    pixel_rows = planes * sum(min(to + 5, h) - max(start - 5, 0) for _, _, start, to in bands)
    columns = sum(min(to + 5, w) - max(start - 5, 0) for _, _, start, to in tiles)
    # runs of windows are aligned to the first column that a tile could have
    runs = sum(
        -(-(to - begin + reach) // run) - (start - begin + reach) // run
        for begin, _, start, to in tiles
    )
    items = {
        "down": rows * columns,
        "across": rows * run * runs,
        "back across": 0,
        "back down": 0,
    }
    if gradient:
        back_rows = planes * len(bands) * g["across_rows"] if tile else rows
        items["back across"] = g["maps"] * back_rows * len(tiles) * 4 * g["gradient_runs"]
        # a step more where the last rows of windows are missing below the image
        own = (end - begin if tile else up(end + 5 - start) for begin, end, start, _ in bands)
        items["back down"] = g["maps"] * planes * sum(own) * w
    taps = {"down": 44, "across": 44, "back across": 11, "back down": 11}

    def total(each: dict) -> float:
        return sum(
            items[phase] * (one if isinstance(one, int) else one[g["layout"]])
            for phase, one in each.items()
        )

    multiply_adds = total(taps)
    prologue = PROLOGUE[gradient][g["layout"]] * g["threads"] * g["blocks"]
    traffic = 8 * pixel_rows * columns + (4 * (g["maps"] - 2) * pixels if gradient else 0)
    return {
        "multiply-adds": multiply_adds / pixels,
        "shared words": total(WORDS) / pixels,
        "shared loads": total(LOADS) / pixels,
        "bytes": traffic / pixels,
        "instructions": (multiply_adds + total(OTHER[gradient]) + prologue) / pixels,
    }


def predict(gpu: Gpu, cost: dict[str, float], pixels: int) -> float:
    """Microseconds: the larger of issue and memory, at the peaks of the data sheet."""
    issue = cost["instructions"] * pixels / (gpu.multiprocessors * 128 * gpu.clock_ghz * 1e3)
    memory = cost["bytes"] * pixels / (gpu.bandwidth_gb * 1e3)
    return max(issue, memory)


SHAPES = [(1, 1, 64, 64), (1, 1, 128, 128), (128, 1, 28, 28), (16, 3, 256, 256), (1, 3, 1080, 1920)]


HEAD = ["task", "shape", "layout", "tiles x bands x planes", "threads x blocks", "multiply-adds"]
HEAD += ["shared words", "shared loads", "bytes", "instructions"]


def work_rows(programs: Programs) -> list[dict[str, object]]:
    """Work a pixel of each shape, for the cut that a GPU of 132 multiprocessors gets."""
    rows = []
    for task in ("value", "gradient"):
        for shape in SHAPES:
            g = programs.geometry(task, shape, 132)
            cost = work(g, shape)
            pixels = shape[0] * shape[1] * shape[2] * shape[3]
            cells = [task, "x".join(map(str, shape)), LAYOUTS[g["layout"]]]
            cells += [f"{g['tiles']} x {g['bands']} x {g['planes']}"]
            cells += [f"{g['threads']} x {g['blocks']}"]
            cells += [f"{cost[name]:.0f}" for name in HEAD[5:]]
            row = dict(zip(HEAD, cells))
            row |= {f"{gpu.name}, us": f"{predict(gpu, cost, pixels):.1f}" for gpu in GPUS}
            rows.append(row)
    return rows


def markdown(rows: list[dict[str, object]]) -> str:
    """Rows as a table."""
    return tables.markdown(
        [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    )


def report(nvcc: Path, architectures: list[str], programs: Programs) -> None:
    """Print what the compiler made of the kernels."""
    shown = {"streaming": (1, 3, 1080, 1920), "tile": (128, 1, 28, 28)}
    tool = disassembler()
    rows, mix_rows = [], []
    for architecture in architectures:
        cubin, said = programs.compile(nvcc, architecture)
        mix = mixes(tool, cubin) if tool else {}
        for (layout, task), (used, spilled) in sorted(registers(said).items()):
            geometry = programs.geometry(task, shown[layout], 132)
            blocks, share = occupancy(architecture, used, geometry)
            kernel = {"": f"sm_{architecture}", "layout": layout, "task": task}
            rows.append(
                kernel
                | {"registers": used, "bytes spilled": spilled, "shared bytes": geometry["shared"]}
                | {"threads": geometry["threads"], "blocks resident": blocks}
                | {"occupancy": f"{share} %"}
            )
            if (layout, task) in mix:
                counts = mix[layout, task]
                mix_rows.append(kernel | {kind: counts[kind] for kind in ["all", *KINDS]})
    print("\nRegisters and occupancy (float32, 11 taps, the cut of a typical picture)\n")
    print(markdown(rows))
    if tool:
        print("\nInstructions in the code\n")
        print(markdown(mix_rows))
    else:
        print("\nno nvdisasm: pip install nvidia-cuda-nvdisasm for the instruction mix")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/gpu_cost.csv")
    args = parser.parse_args()
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda-13.0", "/usr/local/cuda"]
    nvccs = (Path(home) / "bin/nvcc" for home in homes if home)
    nvcc = next((path for path in nvccs if path.exists()), None)
    if nvcc is None:
        sys.exit("gpu_cost: no nvcc found; set CUDA_HOME")
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(Path(folder))
        report(nvcc, args.architectures, programs)
        rows = work_rows(programs)
    print(
        "\nWork a pixel, halos counted, for the cut chosen on 132 multiprocessors; the last "
        "columns are PREDICTIONS from peak rates in microseconds, without launch cost\n"
    )
    print(markdown(rows))
    if args.save:
        with (ROOT / "benchmarks/results/gpu_cost.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
