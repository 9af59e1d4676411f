"""``--method full``: all weights of the UNet."""

from pathlib import Path

from ldm_toolkit.training.methods.unet_step import UNetMethod

__all__ = ["FullUNet"]


class FullUNet(UNetMethod):
    """All weights of the UNet."""

    def save(self, folder: Path) -> None:
        """``folder/unet``."""
        self.unet.save_pretrained(folder / "unet")
