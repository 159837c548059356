"""``python -m cuda_emulator CSRC``: exits with an error where the kernel in CSRC is wrong."""

import sys
from pathlib import Path

from . import load, quick_checks

quick_checks(load(Path(sys.argv[1]), ("-DSSIM_EMULATOR_FLOAT_ONLY",)))
