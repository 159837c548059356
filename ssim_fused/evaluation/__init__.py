"""Values of many pairs of pictures: what the command ``ssim-fused compare`` is made of.

Needs the extra ``command``. Nothing here is imported by ``import ssim_fused``.
"""

from .._extra import require

require("command", "numpy", "PIL", "tifffile", "imagecodecs", "pyarrow")
