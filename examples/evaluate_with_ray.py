"""Compare many pairs of pictures on a Ray cluster, or on this machine: SSIM and its relatives.

python examples/evaluate_with_ray.py pairs.csv out/     columns input and target; Parquet too

The folder for the results is made, or empty: Ray adds files to those that are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.compute
import pyarrow.parquet
import ray
import ray.data

import ssim_fused


def absolute(batch: dict, folder: str) -> dict:
    """Workers have folders of their own: paths are from the list's folder on."""
    for side in ("input", "target"):
        names = batch[side]
        batch[side] = [n if n is None else str(Path(folder) / n) for n in names]
    return batch


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list", type=Path, help="a .csv or .parquet list of pairs")
    parser.add_argument("out", type=Path, help="folder for the results, in Parquet files")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    if not options.list.is_file():
        parser.error(f"{options.list}: no such file")
    if options.out.exists() and not is_empty_folder(options.out):
        parser.error(f"{options.out}: not an empty folder, which results need")

    read = ray.data.read_parquet if options.list.suffix == ".parquet" else ray.data.read_csv
    pairs = read(str(options.list.resolve()))
    folder = str(options.list.resolve().parent)
    pairs = pairs.map_batches(absolute, fn_kwargs={"folder": folder})
    results = pairs.map_batches(ssim_fused.evaluate_batch, batch_size=options.batch_size)
    results.write_parquet(str(options.out.resolve()))

    found = pyarrow.parquet.read_table(options.out, columns=["ssim", "error"])
    errors = [error for error in found["error"].to_pylist() if error]
    print(*errors, sep="\n")
    compared = len(found) - len(errors)
    mean = pyarrow.compute.mean(found["ssim"].filter(pyarrow.compute.equal(found["error"], "")))
    said = f"; mean SSIM {mean.as_py():.6f}" if compared else ""
    print(f"{compared} compared, {len(errors)} not{said}")


if __name__ == "__main__":
    main()
