"""How many bits a model spends on a picture: bounds of -log p, never p itself; lower is better.

- ``latent``: the diffusion's variational bound of a draw of the VAE's posterior, a bit a latent
  element. A density: it can be negative, and only models with one VAE compare by it.
- ``pixel``: the whole model, VAE and diffusion, a bit a pixel's channel: minus the evidence lower
  bound E_q[log p(x | z)] + H(q(z | x)) - E_q[-log p(z)], the last term by the diffusion's bound
  (Vahdat et al. 2021, section 3.1). Pixels have 256 levels, so this is a code length.
- ``vae_elbo`` and ``vae_importance``: the VAE alone, whose prior is N(0, 1), with one sample and
  with k importance-weighted ones (Burda et al. 2016).

A VAE says which picture it means and not how sure it is. What follows here makes a likelihood of
it: each channel is normal around the decoder's output with one standard deviation ``sigma``, and
its 256 levels are that normal's bins (Ho et al. 2020, eq. 13). The diffusion's steps back have the
variance ``fixed_large`` and the first one that of its noise; other choices are other models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm_toolkit import schedulers
from ldm_toolkit.errors import ModelError, NumericalError, UserError
from ldm_toolkit.evaluation import intervals
from ldm_toolkit.latents import decode_latents, pil_to_pixels
from ldm_toolkit.models.components import Components
from ldm_toolkit.parts import Parts
from ldm_toolkit.theory import bound, diffusion, variational
from ldm_toolkit.training.rng import generator, uniform

__all__ = [
    "Bits",
    "Likelihood",
    "LikelihoodOptions",
    "chosen_steps",
    "squared_error",
    "summary",
]


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """How exactly the bounds are estimated.

    ``steps`` of the schedule are computed for a picture, None for all; ``samples`` is the k of the
    importance weights, ``sigma`` the decoder's standard deviation in pixels from -1 to 1. All
    noise is a function of ``seed`` and the picture's number. Raises UserError.
    """

    sigma: float
    seed: int = 0
    steps: int | None = 100
    samples: int = 16
    batch_size: int = 8

    def __post_init__(self) -> None:
        problems = []
        if not 1e-3 <= self.sigma <= 10:
            problems.append(f"sigma must be a number from 0.001 to 10, not {self.sigma!r:.80}")
        if self.steps is not None and self.steps < 2:
            problems.append(f"steps must be 2 or more, not {self.steps!r:.80}")
        for name in ("samples", "batch_size"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be 1 or more, not {getattr(self, name)!r:.80}")
        if problems:
            raise UserError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class Bits:
    """The bounds of one picture in bits a dimension; None where there is no caption."""

    latent: float
    latent_captioned: float | None
    pixel: float
    pixel_captioned: float | None
    vae_elbo: float
    vae_importance: float


class Likelihood:
    """Measures pictures one by one under a model; ``settings`` is what makes numbers comparable.

    Raises ModelError for an inpainting model, UserError for more steps than the schedule has.
    """

    def __init__(self, pipe: Parts, options: LikelihoodOptions) -> None:
        components = pipe.components
        if components.inpainting:
            raise ModelError(
                "an inpainting model draws a part of a given picture and has no likelihood of a "
                "whole one; take a text-to-image model"
            )
        scheduler = schedulers.create("ddpm", components.scheduler_config)
        self._kind = str(scheduler.config.prediction_type)
        # In float64, for the bound is made of small differences of these.
        self._alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
        if options.steps is not None and options.steps > len(self._alphas_cumprod):
            raise UserError(
                f"steps must be at most {len(self._alphas_cumprod)}, which is all of the schedule, "
                f"not {options.steps}"
            )
        self._pipe, self._options = pipe, options
        self.settings: dict[str, Any] = {
            "decoder": f"normal, sigma {options.sigma:.4g} of [-1, 1], in bins of 256 levels",
            "posterior": "a draw",
            "reverse_variance": "fixed_large",
            "prediction": self._kind,
            "timesteps": options.steps or len(self._alphas_cumprod),
            "schedule": len(self._alphas_cumprod),
            "samples": options.samples,
            "seed": options.seed,
        }
        self._nothing = pipe.encode_prompt("")

    @torch.no_grad()
    def measure(self, number: int, image: Image.Image, caption: str | None = None) -> Bits:
        """The bounds of a picture, whose ``number`` and the seed fix its noise.

        Its sides are multiples of the VAE's factor. Raises NumericalError.
        """
        options = self._options
        rng = generator(options.seed, "likelihood", number)
        pixels = pil_to_pixels(image)[None]
        mean, log_variance = _posterior(pixels, self._pipe.components)
        draws = [_draw(mean, log_variance, rng) for _ in range(options.samples)]
        decoded = torch.stack([self._log_likelihood(pixels, z) for z in draws])
        texts = [self._nothing]
        if caption is not None:
            texts.append(self._pipe.encode_prompt(caption))
        phase = uniform(options.seed, "likelihood", number)
        latent = self._latent_bounds(draws[0], texts, phase, rng)
        # In latents of unit variance, as the cross entropy below it.
        entropy = _normal_entropy(log_variance)
        pixel = latent - entropy - decoded.mean()
        elbo, weighted = self._vae_bounds(draws, decoded, mean, log_variance)
        of_latents, of_pixels = mean.numel(), pixels.numel()
        values: dict[str, float | None] = {
            "latent": _bits(latent[0], of_latents),
            "latent_captioned": _bits(latent[1], of_latents) if caption is not None else None,
            "pixel": _bits(pixel[0], of_pixels),
            "pixel_captioned": _bits(pixel[1], of_pixels) if caption is not None else None,
            "vae_elbo": _bits(-elbo, of_pixels),
            "vae_importance": _bits(-weighted, of_pixels),
        }
        if not torch.isfinite(torch.cat([latent, pixel, elbo[None], weighted[None]])).all():
            raise NumericalError("a likelihood is NaN or infinite; try --dtype float32")
        return Bits(**values)  # type: ignore[arg-type]

    def _latent_bounds(
        self, z: Tensor, texts: Sequence[Tensor], phase: float, rng: torch.Generator
    ) -> Tensor:
        """The diffusion's bound of -log p(z | text) in nats for each text, all with one noise.

        ``z`` is (1, C, h, w) float64, a text (1, T, D).
        """
        alphas = self._alphas_cumprod
        steps, weights = chosen_steps(alphas, self._options.steps, phase)
        totals = bound.prior_term(z, alphas[-1]).expand(len(texts)).clone()
        for some, weight in zip(
            steps.split(self._options.batch_size),
            weights.split(self._options.batch_size),
            strict=True,
        ):
            z_0 = z.expand(len(some), -1, -1, -1)
            # One after the other, so that the batch size decides nothing.
            eps = torch.cat([_noise(z, rng) for _ in some])
            z_t = diffusion.add_noise(z_0, eps, alphas[some])
            for row, text in enumerate(texts):
                timesteps = some.to(self._pipe.components.device)
                embeddings = text.expand(len(some), -1, -1)
                output = self._pipe.predict_noise(z_t, timesteps, embeddings).cpu().double()
                terms = bound.step_terms(
                    output,
                    z_0,
                    z_t,
                    some,
                    alphas,
                    kind=self._kind,
                    variance="fixed_large",
                    decoder_variance=1 - float(alphas[0]),
                )
                totals[row] += (weight * terms).sum()
        return totals

    def _log_likelihood(self, pixels: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) of the levels of pixels (1, 3, H, W), a number in nats."""
        made = decode_latents(z.float(), self._pipe.components).cpu().double()
        log_variance = torch.full_like(made, self._options.sigma).square().log()
        return -bound.discrete_reconstruction(pixels.double(), made, log_variance)[0]

    def _vae_bounds(
        self, draws: Sequence[Tensor], decoded: Tensor, mean: Tensor, log_variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ELBO and importance-weighted bound of log p(x) under the VAE's own prior, in nats."""
        components = self._pipe.components
        scale, shift = components.latent_scale, components.latent_shift
        own = mean / scale + shift
        own_log_variance = log_variance - 2 * torch.tensor(scale).double().log()
        elbo = variational.elbo(decoded, own.expand(len(decoded), -1, -1, -1), own_log_variance)
        zero = torch.zeros_like(own)
        weights = []
        for z, log_likelihood in zip(draws, decoded, strict=True):
            at = z / scale + shift
            prior = variational.normal_log_density(at, zero, zero).sum()
            encoder = variational.normal_log_density(at, own, own_log_variance).sum()
            weights.append(log_likelihood + prior - encoder)
        return elbo.mean(), variational.importance_weighted_log_likelihood(torch.stack(weights))


def _posterior(pixels: Tensor, components: Components) -> tuple[Tensor, Tensor]:
    """Mean and log variance of q(z | x), of latents of unit variance, (1, C, h, w) float64.

    Pixels are (1, 3, H, W) from -1 to 1.
    """
    found = components.vae.encode(pixels.to(components.device, components.dtype)).latent_dist
    mean, log_variance = found.mean.cpu().double(), found.logvar.cpu().double()
    scale = components.latent_scale
    rescaled = (mean - components.latent_shift) * scale
    return rescaled, log_variance + 2 * torch.tensor(scale).double().log()


def chosen_steps(alphas_cumprod: Tensor, count: int | None, phase: float) -> tuple[Tensor, Tensor]:
    """Steps of a schedule (T,) and the weight of each term in an unbiased estimate of their sum.

    All, with weights of 1, for None. Otherwise the first, L_0, and ``count`` - 1 of the others at
    even quantiles, the ``phase`` in [0, 1) apart, of a distribution that has half its mass where
    the log SNR falls, as the terms have, and half everywhere (the low-discrepancy sampler of Kingma
    et al. 2021, appendix I.1, on a schedule of T steps).
    """
    total = len(alphas_cumprod)
    if count is None or count == total:
        return torch.arange(total), torch.ones(total, dtype=torch.float64)
    log_snr = torch.logit(alphas_cumprod.clamp(1e-6, 1 - 1e-12))
    falls = (log_snr[:-1] - log_snr[1:]).clamp(min=0)
    chances = 0.5 * falls / falls.sum() + 0.5 / (total - 1)
    quantiles = (torch.arange(count - 1, dtype=torch.float64) + phase) / (count - 1)
    found = torch.searchsorted(chances.cumsum(0), quantiles, right=True).clamp(max=total - 2)
    first = torch.zeros(1, dtype=torch.long)
    weights = 1 / ((count - 1) * chances[found])
    return torch.cat([first, found + 1]), torch.cat([torch.ones_like(weights[:1]), weights])


@torch.no_grad()
def squared_error(number: int, image: Image.Image, components: Components, seed: int = 0) -> float:
    """Mean squared error of a picture in [-1, 1], decoded from one draw of its posterior.

    The root of its mean over pictures is the ``sigma`` under which they are likeliest (Rybkin et
    al. 2021): one number, but fitted on what it is then used for.
    """
    pixels = pil_to_pixels(image)[None]
    drawn = _draw(*_posterior(pixels, components), generator(seed, "sigma", number))
    made = decode_latents(drawn.float(), components).cpu()
    return float((made - pixels).double().square().mean())


def summary(rows: Sequence[Bits]) -> dict[str, intervals.Interval]:
    """The mean of each bound over pictures, with its error bar; also what the captions save.

    The pictures are the independent draws; the noise of each is in the spread between them.
    """
    found = {}
    for one in fields(Bits):
        values = [getattr(row, one.name) for row in rows if getattr(row, one.name) is not None]
        if values:
            found[one.name] = intervals.mean(values)
    saved = [row.latent - row.latent_captioned for row in rows if row.latent_captioned is not None]
    if saved:
        found["saved_by_caption"] = intervals.mean(saved)
    return found


def _normal_entropy(log_variance: Tensor) -> Tensor:
    """Entropy of a normal distribution of independent elements in nats, a number."""
    # The density at the mean, and half a nat an element on average below it.
    zero = torch.zeros_like(log_variance)
    return -variational.normal_log_density(zero, zero, log_variance).sum() + 0.5 * zero.numel()


def _noise(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng).double()


def _draw(mean: Tensor, log_variance: Tensor, rng: torch.Generator) -> Tensor:
    return variational.reparameterise(mean, log_variance, _noise(mean, rng))


def _bits(nats: Tensor, dimensions: int) -> float:
    return float(bound.bits_per_dimension(nats, dimensions))
