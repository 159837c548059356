"""``python -m cuda_emulator CSRC``: exits with an error where the kernel in CSRC is wrong."""

import sys
from pathlib import Path

from . import load, quick_checks

# a planted fault is for the checks to see, not for the compiler
FLAGS = ("-DSSIM_EMULATOR_FLOAT_ONLY", "-Wno-maybe-uninitialized")

quick_checks(load(Path(sys.argv[1]), FLAGS))
