"""The two halves of a latent diffusion model's VAE: into the latents and back."""

import numpy as np
import torch
from PIL import Image

from ldm_toolkit.explain.picture import DIVERGING, Picture, largest, show
from ldm_toolkit.latents import pil_to_pixels
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.theory.variational import kl_to_standard_normal

__all__ = ["autoencoder", "compression"]


def compression(pipeline: LatentPipeline, width: int, height: int) -> float:
    """How many numbers of a picture become one of its latents: 48 for Stable Diffusion."""
    return 3 * width * height / float(np.prod(pipeline.components.latent_shape(width, height)))


def autoencoder(pipeline: LatentPipeline, image: Image.Image) -> Picture:
    """A picture, the channels of its latents, its reconstruction and what that gets wrong.

    The picture's sides are multiples of the latents' factor. Raises UserError.
    """
    latents = pipeline.pil_to_latents(image)
    again = pipeline.latents_to_pil(latents)[0]
    channels = latents[0].cpu().numpy()
    error = np.asarray(again, dtype=np.float32) - np.asarray(image.convert("RGB"), dtype=np.float32)
    squared = max(float(np.square(error).mean()), 1e-12)
    noise_ratio = 10 * float(np.log10(255**2 / squared))
    columns = max(3, len(channels))
    picture = Picture("latents", "autoencoder", "A picture and its latents", (10, 6.2))
    axes = picture.grid(2, columns)
    wide = image.width, image.height
    show(axes[0, 0], image, "the picture", note=f"{wide[0]} x {wide[1]} x 3 numbers")
    show(axes[0, 1], again, "reconstruction", note=f"PSNR {noise_ratio:.1f} dB")
    distance = np.abs(error).mean(2)
    show(
        axes[0, 2],
        distance,
        "difference",
        span=(0, largest(distance)),
        note=f"{distance.mean():.1f} of 255 on average",
    )
    for place in axes[0, 3:]:
        place.set_visible(False)
    reach = largest(channels)
    for number, place in enumerate(axes[1]):
        if number < len(channels):
            one = channels[number]
            note = f"{one.min():.1f} to {one.max():.1f}"
            show(place, one, f"channel {number + 1}", span=(-reach, reach), colours=DIVERGING,
                 note=note)  # fmt: skip
        else:
            place.set_visible(False)
    shape = " x ".join(str(side) for side in (*channels.shape[1:], len(channels)))
    picture.caption = (
        f"The encoder turns {wide[0]} x {wide[1]} x 3 numbers into {shape}: "
        f"{compression(pipeline, *wide):.3g} times fewer, each about the pixels around its own "
        "place, so that every channel is a small map of the picture. The decoder brings it back "
        f"with a PSNR of {noise_ratio:.1f} dB; what is lost is bright in the difference. These are "
        "the two terms of the ELBO that a VAE is trained with: the error of the reconstruction, "
        f"and the KL to N(0, I), here {_divergence(pipeline, image):.1f} nats per latent number."
    )
    return picture


@torch.no_grad()
def _divergence(pipeline: LatentPipeline, image: Image.Image) -> float:
    """KL of the encoder's normal to N(0, 1), nats an element."""
    components = pipeline.components
    pixels = pil_to_pixels(image)[None].to(components.device, components.dtype)
    posterior = components.vae.encode(pixels).latent_dist
    return float(kl_to_standard_normal(posterior.mean.float(), posterior.logvar.float()).mean())
