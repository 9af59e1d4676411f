"""The options of the training commands: one dataclass is the command line, the YAML and the help.

Level 1: no torch.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from ldm_toolkit.errors import suggestion
from ldm_toolkit.training.loop_config import LoopConfig, ValidationOptions

__all__ = ["UNET_METHODS", "LoopConfig", "TextEncoderConfig", "UNetConfig", "VAEConfig"]

UNET_METHODS = {
    "full": "full.FullUNet",
    "lora": "lora.LoraUNet",
}
"""What ``--method`` may say: module and class in `training.methods`. A new method is a row here."""


@dataclass(kw_only=True)
class DataConfig:
    """Where pictures and captions come from.

    Attributes:
        data: Image folder with metadata.jsonl, metadata.csv or .txt captions, or "storybook" for
            scenes drawn on the fly.
        count: Scenes of "storybook".
        size: Height and width in pixels that pictures are brought to.
    """

    data: str
    count: int = 4000
    size: int = 512

    def data_problems(self) -> list[str]:
        """What is wrong with the data options, one line each."""
        found = []
        if self.size < 64 or self.size % 8:
            found.append("--size must be a multiple of 8 and at least 64")
        if self.count < 1:
            found.append("--count must be at least 1")
        return found


@dataclass(kw_only=True)
class LoraOptions:
    """The shape of a LoRA.

    Attributes:
        rank: Rank of a LoRA, the width of the matrices beside each layer.
        alpha: A LoRA is added alpha / rank times; by default rank, which is once.
        dora: Train the length of each output's weights too, as DoRA does.
        rslora: Add the LoRA alpha / sqrt(rank) times, as rank-stabilised LoRA does.
        lora_targets: Layers that get a LoRA, separated by commas: attention, all (projections,
            feed-forward layers and convolutions too), or ends of their names such as to_q,ff.net.2.
    """

    rank: int = 16
    alpha: float | None = None
    dora: bool = False
    rslora: bool = False
    lora_targets: str = "attention"

    def lora_problems(self, method: str) -> list[str]:
        """What is wrong with the LoRA's options, one line each."""
        found = []
        given = [f.name for f in fields(LoraOptions) if getattr(self, f.name) != f.default]
        if given and method != "lora":
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            found.append(f"only --method lora knows {flags}")
        if self.rank < 1:
            found.append("--rank must be at least 1")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            found.append("--alpha must be positive")
        if not all(word.strip() for word in self.lora_targets.split(",")):
            found.append("--lora-targets must be names separated by commas, such as to_q,to_v")
        return found


@dataclass(kw_only=True)
class UNetConfig(LoopConfig, DataConfig, LoraOptions, ValidationOptions):
    """Train the UNet to predict noise.

    Attributes:
        model: Model to start from: a bundled name or a folder in the diffusers layout.
        from_config: Folder of component configurations: the UNet starts with fresh weights, and
            model is not used.
        vae: Folder with another VAE than the model's.
        text_encoder: Folder with another tokenizer and text encoder than the model's.
        method: What is trained: full is all weights of the UNet, lora a small file beside it.
        caption_dropout: Share of captions replaced by the empty one, for guidance.
        min_snr_gamma: Clamp of min-SNR loss weighting; 0 switches it off.
        debiased: Weight the loss by how much an error of the prediction counts in the picture.
        offset_noise: Standard deviation of a noise that is constant over each latent channel, added
            to the usual one, so that the mean colour does not show through the strongest noise.
        input_perturbation: Standard deviation of a noise that the input gets and the target does
            not, so that the network learns to put up with its own errors; 0.1 is usual.
        zero_terminal_snr: Rescale the noise schedule so that its last timestep is noise alone; for
            models that predict v or the sample.
        timesteps: uniform draws all timesteps alike; logit_normal draws more of the middle ones and
            hardly any at the ends.
        timestep_mean: Mean of the logit of t in logit_normal; above 0 there is more noise.
        timestep_scale: Standard deviation of the logit of t in logit_normal.
        latents: mean trains on the VAE posterior's mean, sample draws from the posterior.
        captions: Captions an image of "storybook".
        cache: Folder of the latent and embedding cache; default OUTPUT/cache.
        sample_prompts: Prompts of the sample pictures.
    """

    model: str = "storybook"
    from_config: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    method: str = "full"
    caption_dropout: float = 0.1
    min_snr_gamma: float = 0.0
    debiased: bool = False
    offset_noise: float = 0.0
    input_perturbation: float = 0.0
    zero_terminal_snr: bool = False
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    timestep_mean: float = 0.0
    timestep_scale: float = 1.0
    latents: Literal["sample", "mean"] = "sample"
    captions: int = 3
    cache: str | None = None
    sample_prompts: list[str] = field(default_factory=lambda: ["a dog wearing hat"])

    def problems(self) -> list[str]:
        """What is wrong with the options, one line each."""
        found = super().problems() + self.data_problems() + self.validation_problems(self.data)
        if self.method not in UNET_METHODS:
            found.append(
                f"--method must be one of {', '.join(UNET_METHODS)}, not {self.method!r:.80}"
                + suggestion(self.method, UNET_METHODS)
            )
        found += self.lora_problems(self.method)
        if self.from_config is not None and self.method == "lora":
            found.append("--method lora needs trained weights: pass --model, not --from-config")
        if self.from_config is not None and not (self.vae and self.text_encoder):
            found.append("--from-config needs --vae and --text-encoder")
        if not 0 <= self.caption_dropout <= 1:
            found.append("--caption-dropout must lie between 0 and 1")
        if not self.min_snr_gamma >= 0:
            found.append("--min-snr-gamma must not be negative")
        for name in ("offset_noise", "input_perturbation"):
            if not 0 <= getattr(self, name) < float("inf"):
                found.append(f"--{name.replace('_', '-')} must not be negative")
        if self.captions < 1:
            found.append("--captions must be at least 1")
        if self.min_snr_gamma > 0 and self.debiased:
            found.append("--min-snr-gamma and --debiased both weight the timesteps: pass one")
        return found + self._timestep_problems()

    def _timestep_problems(self) -> list[str]:
        found = []
        if not abs(self.timestep_mean) < float("inf"):
            found.append("--timestep-mean must be finite")
        if not 0 < self.timestep_scale < float("inf"):
            found.append("--timestep-scale must be positive")
        shaped = (self.timestep_mean, self.timestep_scale) != (0.0, 1.0)
        if shaped and self.timesteps == "uniform":
            found.append(
                "--timestep-mean and --timestep-scale shape --timesteps logit_normal: pass it too"
            )
        return found


@dataclass(kw_only=True)
class VAEConfig(LoopConfig, DataConfig, ValidationOptions):
    """Train the autoencoder to reconstruct pictures.

    Attributes:
        model: Model to start from: a bundled name or a folder in the diffusers layout.
        from_config: Folder of component configurations: the VAE starts with fresh weights, and
            model is not used.
        train: decoder keeps the latents, so every UNet goes on working; all changes them.
        crop: Side of the random square crops in pixels, a multiple of 8.
        crops: Crops taken from each picture in a row.
        reconstruction: Distance between pixels; l1 is their mean absolute difference, l2 their mean
            squared one.
        kl_weight: Weight of the KL term an element.
        gradient_weight: Weight of the L1 distance between image gradients, which sharpens edges.
        adversarial_weight: Weight of the PatchGAN term relative to the reconstruction's gradient.
        adversarial_start: Step from which the PatchGAN term counts.
    """

    model: str = "storybook"
    from_config: str | None = None
    train: Literal["decoder", "all"] = "decoder"
    crop: int = 128
    crops: int = 4
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = 1e-5
    gradient_weight: float = 1.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0

    def problems(self) -> list[str]:
        """What is wrong with the options, one line each."""
        found = super().problems() + self.data_problems() + self.validation_problems(self.data)
        if self.from_config is not None and self.train == "decoder":
            found.append("--from-config makes fresh weights: pass --train all")
        if self.crop < 32 or self.crop % 8 or self.crop > self.size:
            found.append("--crop must be a multiple of 8 between 32 and --size")
        if self.crops < 1:
            found.append("--crops must be at least 1")
        for name in ("kl_weight", "gradient_weight", "adversarial_weight", "adversarial_start"):
            if not getattr(self, name) >= 0:
                found.append(f"--{name.replace('_', '-')} must not be negative")
        return found


@dataclass(kw_only=True)
class TextEncoderConfig(LoopConfig):
    """Train a tokenizer and a text encoder on the storybook captions.

    Attributes:
        from_config: Folder of component configurations.
        caption_count: Captions that the tokenizer learns its merges from.
    """

    from_config: str
    caption_count: int = 20000
