"""Pictures that teach what a latent diffusion model does, for notebooks and for ``ldm-explain``.

Each function returns a matplotlib figure with a ``caption``; ``observe`` makes the run that some of
them are about::

    from ldm_toolkit import LatentPipeline, explain

    pipeline = LatentPipeline.from_pretrained()
    observed = explain.observe(pipeline, "a dog wearing hat", steps=20, seed=42)
    explain.attention_maps(pipeline, observed).savefig("attention.png")

Needs matplotlib (``pip install 'ldm-toolkit[explain]'``); without it the import raises UserError.
"""

from ldm_toolkit.explain.attention import attention_maps
from ldm_toolkit.explain.autoencoder import autoencoder
from ldm_toolkit.explain.guidance import guidance_difference, guidance_scales
from ldm_toolkit.explain.interpolation import between_prompts, between_seeds
from ldm_toolkit.explain.losses import adversarial_losses, bound_terms
from ldm_toolkit.explain.noise import added_noise, one_step, run_strip
from ldm_toolkit.explain.observed import Observed, observe
from ldm_toolkit.explain.picture import Picture
from ldm_toolkit.explain.schedule import noise_schedule, timesteps
from ldm_toolkit.explain.tokens import embedding

__all__ = [
    "Observed",
    "Picture",
    "added_noise",
    "adversarial_losses",
    "attention_maps",
    "autoencoder",
    "between_prompts",
    "between_seeds",
    "bound_terms",
    "embedding",
    "guidance_difference",
    "guidance_scales",
    "noise_schedule",
    "observe",
    "one_step",
    "run_strip",
    "timesteps",
]
