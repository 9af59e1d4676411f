"""``--method dreambooth`` and ``dreambooth-lora``: a subject of one's own, and its class as it was.

Every second sample is a picture of the subject's class, as the model drew it before: Ruiz et al.
2023, section 3.3 and eq. 2.
"""

from ldm_toolkit.training.methods.full import FullUNet
from ldm_toolkit.training.methods.lora import LoraUNet

__all__ = ["DreamBooth", "DreamBoothLora"]


class DreamBooth(FullUNet):
    """All weights of the UNet, with prior preservation."""

    class_pictures = True


class DreamBoothLora(LoraUNet):
    """A LoRA or DoRA of the UNet, with prior preservation."""

    class_pictures = True
