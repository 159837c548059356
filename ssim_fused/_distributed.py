"""DTensor: how the operators run on images that are spread over processes.

Nothing here runs, and nothing more of torch.distributed is imported, before the first DTensor.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._request import MEAN, PLANE


def is_spread(image: Tensor) -> bool:
    """Whether an image is a DTensor."""
    if type(image) is Tensor:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(image, module.DTensor)


def beside(image: Tensor, values: Sequence[float]) -> Tensor:
    """Numbers as a tensor of an image's type, where it is."""
    if image.is_cuda:  # a copy would wait for the GPU, and could not be captured in a graph
        numbers = (torch.full((), v, dtype=image.dtype, device=image.device) for v in values)
        return torch.stack(tuple(numbers))
    return torch.tensor(values, dtype=image.dtype, device=image.device)


def constants(values: Sequence[float], image: Tensor) -> Tensor:
    """Numbers as a tensor that an image can be computed with: the same for every process."""
    tensor = beside(image, values)
    if not is_spread(image):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(image, DTensor)
    return DTensor.from_local(tensor, image.device_mesh, run_check=False)


@functools.cache
def register_operators() -> None:
    """Tell DTensor how the operators may be cut, and what comes out then."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
    from torch.distributed.tensor.experimental import register_sharding

    def register(name: str, outputs: Any) -> None:
        """outputs(placement, arguments by name): those of an operator whose images lie so."""
        op = getattr(torch.ops.ssim_fused, name).default
        names = [argument.name for argument in op._schema.arguments]

        def sharding(*arguments: Any) -> list:
            is_tensor = [isinstance(argument, DTensorSpec) for argument in arguments]
            named = dict(zip(names, arguments))
            rows = []
            # planes are independent of each other: whole, or by image, or by channel
            for placement in (Replicate(), Shard(0), Shard(1)):
                found = outputs(placement, named)
                if found is not None:
                    rows.append((found, [placement if is_ else None for is_ in is_tensor]))
            return rows

        register_sharding(op)(sharding)
        # not by the images alone, which is what register_sharding takes outputs to depend on
        tensors = [str(argument.type) for argument in op._schema.arguments]
        first = next(i for i, kind in enumerate(tensors) if "Tensor" not in kind)
        info = RuntimeSchemaInfo(first, needs_pytree=True)
        DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[op] = info

    def gradients(placement: Any, named: dict[str, Any]) -> list:
        # one that is not wanted is empty
        wanted = (named["grad_input"], named["grad_target"])
        return [placement if is_wanted else Replicate() for is_wanted in wanted]

    def loss(placement: Any, named: dict[str, Any]) -> list | None:
        if named["reduction"] == PLANE or placement.is_replicate():
            return [placement]
        if named["reduction"] == MEAN:  # of parts it would need their sizes, see _ops.py
            return None
        return [Partial("sum")]

    def loss_and_gradients(placement: Any, named: dict[str, Any]) -> list | None:
        value = loss(placement, named)
        return None if value is None else value + gradients(placement, named)

    register("loss", loss)
    register("loss_and_gradients", loss_and_gradients)
    register("loss_map", lambda placement, _: [placement])
    register("loss_backward", gradients)
    register(
        "loss_and_pool", lambda placement, named: [placement] * 3 + gradients(placement, named)
    )
    register("unpool", lambda placement, _: [placement])
