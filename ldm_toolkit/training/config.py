"""The options of the training commands: one dataclass is the command line, the YAML and the help.

Level 1: no torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from ldm_toolkit.errors import suggestion
from ldm_toolkit.training.loop_config import LoopConfig, ValidationOptions
from ldm_toolkit.training.method_options import (
    PRIOR_METHODS,
    WORD_METHODS,
    EncoderOptions,
    LoraOptions,
    PriorOptions,
    WordOptions,
)

__all__ = [
    "UNET_METHODS",
    "JudgeConfig",
    "LoopConfig",
    "TextEncoderConfig",
    "UNetConfig",
    "VAEConfig",
]

UNET_METHODS = {
    "full": "full.FullUNet",
    "lora": "lora.LoraUNet",
    "dreambooth": "dreambooth.DreamBooth",
    "dreambooth-lora": "dreambooth.DreamBoothLora",
    "textual-inversion": "textual_inversion.TextualInversion",
}
"""What ``--method`` may say: module and class in `training.methods`. A new method is a row here."""


@dataclass(kw_only=True)
class DataConfig:
    """Where pictures and captions come from.

    Attributes:
        data: Image folder with metadata.jsonl, .csv, .parquet or .txt captions; webdataset shards
            (a folder of .tar, one, or "x-{000..099}.tar"); .parquet or .arrow tables; owner/name
            of a data set on the hub; or "storybook" for scenes drawn on the fly.
        image_column: Column of the pictures, of their names in metadata files; found by itself
            where it has a usual name.
        caption_column: Column of the captions, or key in the .json of shards; found by itself where
            it has a usual name.
        data_split: Split of a data set that has several.
        data_subset: Subset of a data set on the hub.
        data_revision: Branch, tag or commit of a data set on the hub.
        check_data: Report what is in the data and end, for which no --output is needed; exit code 2
            where a picture is bad.
        skip_bad: Train without the pictures that are bad, where they are few.
        max_bad: Share of bad pictures above which --skip-bad gives up.
        count: How many scenes --data storybook draws.
        size: Height and width in pixels that pictures are brought to.
    """

    data: str
    image_column: str | None = None
    caption_column: str | None = None
    data_split: str = "train"
    data_subset: str | None = None
    data_revision: str | None = None
    check_data: bool = False
    skip_bad: bool = False
    max_bad: float = 0.1
    count: int = 4000
    size: int = 512

    def data_problems(self) -> list[str]:
        """What is wrong with the data options, one line each."""
        found = []
        if not 64 <= self.size <= 4096 or self.size % 8:
            found.append("--size must be a multiple of 8 and from 64 to 4096")
        if self.count < 1:
            found.append("--count must be at least 1")
        if not 0 <= self.max_bad <= 1:
            found.append("--max-bad must lie between 0 and 1")
        return found


@dataclass(kw_only=True)
class UNetConfig(
    LoopConfig,
    DataConfig,
    EncoderOptions,
    LoraOptions,
    PriorOptions,
    WordOptions,
    ValidationOptions,
):
    """Train the UNet to predict noise.

    Attributes:
        model: Model to start from: a bundled name or a folder in the diffusers layout.
        from_config: Folder of component configurations: the UNet starts with fresh weights, and
            --model is not used.
        vae: Folder with another VAE than the model's.
        text_encoder: Folder with another tokenizer and text encoder than the model's.
        method: What is trained. full is all weights of the UNet, lora a small file beside it;
            dreambooth and dreambooth-lora are the same for one subject, beside pictures of its
            class that keep the class as it was; textual-inversion is the vectors of a new word.
        caption_dropout: Share of captions replaced by the empty one, for guidance.
        min_snr_gamma: Clamp of min-SNR loss weighting; 0 switches it off.
        debiased: Weight the loss by how much an error of the prediction counts in the picture.
        masked_loss: Count errors only where the mask of a picture is white: NAME.mask.png beside
            NAME.png or NAME.jpg, or what mask_file_name in the metadata names. A picture without
            one counts everywhere.
        offset_noise: Standard deviation of a noise that is constant over each latent channel, added
            to the usual one, so that the mean colour does not show through the strongest noise.
        input_perturbation: Standard deviation of a noise that the input gets and the target does
            not, so that the network learns to put up with its own errors; 0.1 is usual.
        zero_terminal_snr: Rescale the noise schedule so that its last timestep is noise alone; for
            models that predict v or the sample.
        timesteps: How noisy the pictures are that are trained on: uniform draws all timesteps
            alike; logit_normal draws more of the middle ones and hardly any at the ends.
        timestep_mean: Mean of the logit of t in logit_normal; above 0 there is more noise.
        timestep_scale: Standard deviation of the logit of t in logit_normal.
        latents: mean trains on the VAE posterior's mean, sample draws from the posterior; left out,
            it is as the model says that it was trained (storybook on the mean), else sample.
        buckets: Train pictures in shapes near their own, with about as many pixels as the square
            and sides that are multiples of 64; each batch is of one shape.
        captions: How many captions each scene of --data storybook has.
        cache: Folder of the latents and embeddings that are computed once; by default OUTPUT/cache.
        no_cache: Encode pictures and captions in every step, not once before the first: slower, and
            nothing is kept. The numbers are the same within rounding.
        sample_prompts: Prompts of the pictures of --sample-every, a list.
    """

    model: str = "storybook"
    from_config: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    method: str = "full"
    caption_dropout: float = 0.1
    min_snr_gamma: float = 0.0
    debiased: bool = False
    masked_loss: bool = False
    offset_noise: float = 0.0
    input_perturbation: float = 0.0
    zero_terminal_snr: bool = False
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    timestep_mean: float = 0.0
    timestep_scale: float = 1.0
    latents: Literal["sample", "mean"] | None = None
    buckets: bool = False
    captions: int = 3
    cache: str | None = None
    no_cache: bool = False
    sample_prompts: list[str] = field(default_factory=lambda: ["a dog wearing hat"])

    def problems(self) -> list[str]:
        """What is wrong with the options, one line each."""
        found = super().problems() + self.data_problems() + self.validation_problems(self.data)
        if self.method not in UNET_METHODS:
            found.append(
                f"--method must be one of {', '.join(UNET_METHODS)}, not {self.method!r:.80}"
                + suggestion(self.method, UNET_METHODS)
            )
        found += self.encoder_problems(self.method, self.optimizer)
        found += self.lora_problems(self.method)
        found += self.prior_problems(self.method, self.batch_size)
        if self.sample_every and not self.sample_prompts:
            found.append("--sample-every needs --sample-prompts")
        found += self.word_problems(self.method, self.sample_prompts if self.sample_every else ())
        if self.validation_data is not None and self.validate_every == 0:
            found.append("--validation-data is not looked at: pass --validate-every too")
        if self.validate_every > 0 and self.method in WORD_METHODS:
            found.append(f"--method {self.method} has no loss to validate: pass --validate-every 0")
        if self.buckets and self.method in PRIOR_METHODS:
            found.append(f"--method {self.method} takes squares only: leave --buckets out")
        if self.from_config is not None and self.method != "full":
            found.append(
                f"--method {self.method} needs trained weights: pass --model, not --from-config"
            )
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

    @property
    def batch_unit(self) -> int:
        """Two where half of each batch are pictures of a class."""
        return 2 if self.method in PRIOR_METHODS else 1

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
            --model is not used.
        train: decoder keeps the latents, so every UNet goes on working; all changes them.
        crop: Side of the random square crops in pixels, a multiple of 8; 0 is 128, or the
            size where that is smaller.
        crops: Crops taken from each picture in a row.
        reconstruction: Distance between pixels; l1 is their mean absolute difference, l2 their mean
            squared one.
        kl_weight: Weight of the KL term an element.
        gradient_weight: Weight of the L1 distance between image gradients, which sharpens edges.
        perceptual: Distance between features of a frozen network, which counts besides that of the
            pixels; encoder takes the model's own encoder as it was, lpips is LPIPS with VGG16, for
            pip install 'ldm-toolkit[lpips]' and weights that torchvision downloads.
        perceptual_weight: Weight of that distance.
        adversarial_weight: Weight of the PatchGAN term relative to the reconstruction's gradient.
        adversarial_start: Step from which the PatchGAN term counts.
    """

    model: str = "storybook"
    from_config: str | None = None
    train: Literal["decoder", "all"] = "decoder"
    crop: int = 0
    crops: int = 4
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = 1e-5
    gradient_weight: float = 1.0
    perceptual: Literal["none", "encoder", "lpips"] = "none"
    perceptual_weight: float = 1.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0

    def __post_init__(self) -> None:
        """Fill the gaps, then report every contradiction. Raises UserError."""
        if self.crop == 0 and self.size is not None:  # null, of which the rest tells
            self.crop = min(128, self.size)
        super().__post_init__()

    def problems(self) -> list[str]:
        """What is wrong with the options, one line each."""
        found = super().problems() + self.data_problems() + self.validation_problems(self.data)
        if self.from_config is not None and self.train == "decoder":
            found.append("--from-config makes fresh weights: pass --train all")
        if self.from_config is not None and self.perceptual == "encoder":
            found.append("--perceptual encoder needs a trained one: pass --model instead")
        if self.perceptual == "none" and self.perceptual_weight != 1:
            found.append("--perceptual-weight weights --perceptual encoder or lpips: pass one")
        if self.crop < 32 or self.crop % 8 or self.crop > self.size:
            found.append(
                f"--crop {self.crop} must be a multiple of 8, at least 32 and at most --size "
                f"{self.size}"
            )
        if self.auto_batch and self.adversarial_weight > 0:
            found.append(
                "--auto-batch would change the weight of the PatchGAN term, which is that of a "
                "batch: leave it out or pass --adversarial-weight 0"
            )
        if self.crops < 1:
            found.append("--crops must be at least 1")
        for name in (
            *("kl_weight", "gradient_weight", "perceptual_weight"),
            *("adversarial_weight", "adversarial_start"),
        ):
            if not getattr(self, name) >= 0:
                found.append(f"--{name.replace('_', '-')} must not be negative")
        return found


@dataclass(kw_only=True)
class TextEncoderConfig(LoopConfig):
    """Train a tokenizer and a text encoder on the storybook captions.

    Attributes:
        from_config: Folder of component configurations.
        model: Bundled name or model folder whose text encoder, of the same shape, it starts from:
            tokens that both know keep their embeddings. Without it the weights are fresh.
        caption_count: Captions that the tokenizer learns its merges from.
    """

    from_config: str
    model: str | None = None
    caption_count: int = 20000


@dataclass(kw_only=True)
class JudgeConfig(LoopConfig):
    """Train a judge of storybook pictures on renders alone.

    Attributes:
        model: Name of a bundled model or a model folder, through whose autoencoder some go.
        network: residual or inverted; two kinds, so that one can check the other.
        decoded: Pictures that go through the autoencoder, once for the whole run.
        start: A judge's file to go on from, in place of a new --network; the default is none.
    """

    model: str = "storybook"
    network: Literal["residual", "inverted"] = "residual"
    decoded: int = 600
    start: str | None = None

    def problems(self) -> list[str]:
        """What is wrong with the options, one line each."""
        found = super().problems()
        if self.decoded < 1:
            found.append("--decoded must be at least 1")
        return found
