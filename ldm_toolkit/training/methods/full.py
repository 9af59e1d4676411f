"""``--method full``: all weights of the UNet, and of the text encoder where it is trained."""

from pathlib import Path

from ldm_toolkit.training.methods.unet_step import UNetMethod

__all__ = ["FullUNet"]


class FullUNet(UNetMethod):
    """All weights of the UNet, and of the text encoder."""

    def save(self, folder: Path) -> None:
        """``folder/unet``, and ``folder/text_encoder`` where it is trained."""
        self.unet.save_pretrained(folder / "unet")
        if self.encoder is not None:
            self.encoder.save_pretrained(folder / "text_encoder")
