"""What the host asks the device for after a step: each copy waits for the device, so there are few.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fetched(*parts: Tensor) -> list[Tensor]:
    """Tensors of 4-byte numbers on the host, all of them brought there in one copy.

    On the CPU they are the tensors themselves.
    """
    if all(part.is_cpu for part in parts):
        return list(parts)
    words = torch.cat([part.reshape(-1).view(torch.int32) for part in parts]).cpu()
    pieces = words.split([part.numel() for part in parts])
    return [piece.view(part.dtype).view(part.shape)
            for piece, part in zip(pieces, parts, strict=True)]
