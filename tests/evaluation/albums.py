"""Pictures in memory for tests of measures."""

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image


class Album:
    """Pictures in memory, some with captions."""

    place = "album"

    def __init__(self, images: Sequence[Image.Image], captions: Sequence[str] = ()) -> None:
        self.images, self.captions = images, captions

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        return self.images[index]

    def caption(self, index: int) -> str | None:
        return self.captions[index] if self.captions else None

    def asked(self, index: int) -> None:
        return None

    def digest(self, index: int) -> str:
        content = self.images[index].tobytes() + str(self.caption(index)).encode()
        return hashlib.sha256(content).hexdigest()


def noise(count: int, seed: int = 0, size: int = 16, level: int = 128) -> list[Image.Image]:
    """Pictures of coloured blots."""
    rng = torch.Generator().manual_seed(seed)
    blots = level + 40 * torch.randn(count, 4, 4, 3, generator=rng)
    arrays = blots.clamp(0, 255).to(torch.uint8).numpy()
    return [Image.fromarray(one).resize((size, size)) for one in arrays]
