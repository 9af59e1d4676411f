"""``--method full``: all weights of the UNet, and of the text encoder where it is trained."""

from pathlib import Path

from ldm_toolkit.training.folders import save_network
from ldm_toolkit.training.methods.unet_step import UNetMethod

__all__ = ["FullUNet"]


class FullUNet(UNetMethod):
    """All weights of the UNet, and of the text encoder."""

    def save(self, folder: Path) -> None:
        """``folder/unet``, and ``folder/text_encoder`` where it is trained."""
        save_network(self.unet, folder / "unet")
        if self.encoder is not None:
            save_network(self.encoder, folder / "text_encoder")
