"""Networks that FSDP has divided: each process holds a slice of every parameter, as a DTensor.

Version 2 of fully sharded data parallel, `torch.distributed.fsdp.fully_shard`. All processes have
to call these functions together; what is not divided passes through them as it is.
"""

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["divided_like", "gathered", "is_divided", "whole"]


def whole(tensor: Tensor) -> Tensor:
    """The same tensor, of a divided one all slices."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_divided(tensors: Iterable[Tensor]) -> bool:
    """Whether each process holds a part only of any of these."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def divided_like(tensor: Tensor, own: object) -> Tensor:
    """A whole tensor divided as ``own`` is, where that is divided and of its shape."""
    if not isinstance(own, DTensor) or tensor.shape != own.shape:
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)


@contextlib.contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Inside the block a network's parameters are whole and may be saved, by one process alone.

    It must not be called in there: FSDP's hooks would divide it again. Its parts are of their own
    classes, whose names are saved; FSDP makes subclasses of them.
    """
    parts = [(part, type(part)) for part in network.modules() if isinstance(part, FSDPModule)]
    places = [
        (module, name, parameter)
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for module, name, parameter in places:
        plain = parameter.full_tensor().detach()
        module._parameters[name] = nn.Parameter(plain, parameter.requires_grad)
    for part, kind in parts:
        part.__class__ = kind.__bases__[1]
    try:
        yield
    finally:
        for part, kind in parts:
            part.__class__ = kind
        for module, name, parameter in places:
            module._parameters[name] = parameter
