"""``--method full``: all weights of the UNet."""

from pathlib import Path

from ldm_toolkit.training.folders import save_network
from ldm_toolkit.training.methods.unet_step import UNetMethod

__all__ = ["FullUNet"]


class FullUNet(UNetMethod):
    """All weights of the UNet."""

    def save(self, folder: Path) -> None:
        """``folder/unet``."""
        save_network(self.unet, folder / "unet")
