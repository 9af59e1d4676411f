"""The pictures in one page that teaches, and as files."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ldm_toolkit import webpage
from ldm_toolkit.explain.attention import attention_maps
from ldm_toolkit.explain.autoencoder import autoencoder
from ldm_toolkit.explain.guidance import guidance_difference, guidance_scales
from ldm_toolkit.explain.interpolation import between_prompts, between_seeds
from ldm_toolkit.explain.losses import adversarial_losses, bound_terms
from ldm_toolkit.explain.noise import added_noise, one_step, run_strip
from ldm_toolkit.explain.observed import Observed
from ldm_toolkit.explain.picture import Picture
from ldm_toolkit.explain.schedule import noise_schedule, timesteps
from ldm_toolkit.explain.tokens import embedding
from ldm_toolkit.files import write_atomic
from ldm_toolkit.images import save_image, to_rgb
from ldm_toolkit.pipeline import LatentPipeline

__all__ = ["COUNT", "PAGE", "Subject", "pictures", "write_page"]

PAGE = "index.html"


@dataclass(frozen=True)
class Subject:
    """What a page is about.

    ``image`` is what goes through the autoencoder and the noise, the run's own where it is None;
    ``other`` is the second prompt of the way between two.
    """

    pipeline: LatentPipeline
    observed: Observed
    other: str
    image: Image.Image | None = None

    @property
    def picture(self) -> Image.Image:
        """The picture that goes through the autoencoder, cut to the run's size."""
        if self.image is None:
            return self.observed.image
        size = self.observed.recipe.width, self.observed.recipe.height
        return ImageOps.fit(to_rgb(self.image), size, Image.Resampling.LANCZOS)

    @property
    def prompt(self) -> str:
        """The prompt that fits ``picture``: none is known for one from outside."""
        return self.observed.recipe.prompt if self.image is None else ""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.observed.recipe.seed


_MAKERS: tuple[Callable[[Subject], Picture], ...] = (
    lambda s: embedding(s.pipeline, s.observed.recipe.prompt),
    lambda s: attention_maps(s.pipeline, s.observed),
    lambda s: autoencoder(s.pipeline, s.picture),
    lambda s: noise_schedule(s.pipeline),
    lambda s: timesteps(s.pipeline, s.observed.recipe.steps),
    lambda s: added_noise(s.pipeline, s.picture, s.seed),
    lambda s: one_step(s.pipeline, s.picture, s.prompt, s.seed),
    lambda s: run_strip(s.pipeline, s.observed),
    lambda s: guidance_scales(s.pipeline, s.observed),
    lambda s: guidance_difference(s.pipeline, s.observed),
    lambda s: between_seeds(s.pipeline, s.observed),
    lambda s: between_prompts(s.pipeline, s.observed, s.other),
    lambda s: bound_terms(s.pipeline, s.picture, s.prompt, s.seed),
    lambda s: adversarial_losses(),
)

COUNT = len(_MAKERS)
"""How many pictures a page has."""

# Section -> heading and what leads into it.
_SECTIONS = {
    "text": (
        "The prompt",
        "A latent diffusion model reads text through a text encoder and looks at it, place by "
        "place, while it draws.",
    ),
    "latents": (
        "The autoencoder",
        "Diffusion in pixels would be slow. A variational autoencoder, trained first, makes a "
        "small picture of numbers out of a large one of pixels, and the other way round.",
    ),
    "schedule": (
        "The schedule",
        "Training and sampling agree on how much noise belongs to a timestep.",
    ),
    "noise": (
        "Noise, and the way back",
        "The forward process destroys a picture bit by bit; the network is trained to undo it.",
    ),
    "guidance": (
        "Guidance",
        "The network is asked twice, with the prompt and without, and the difference is "
        "exaggerated.",
    ),
    "interpolation": (
        "Between two pictures",
        "Noise and embeddings are points in spaces; between two of them lie others.",
    ),
    "training": ("Training", "What the two networks behind this learnt by."),
}

_STYLE = """\
:root { --ink: #1f2933; --soft: #5b6672; --ground: #f6f7f9; --card: #ffffff; --line: #e1e5ea;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #a3adba; --ground: #14171c; --card: #1d2128; --line: #2e343d;
    --accent: #56b4e9; }
  figure img { filter: brightness(0.92); }
}
body { background: var(--ground); color: var(--ink); max-width: 66rem; }
h1 { font-size: 1.9rem; margin-bottom: 0.3rem; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 0.2rem; padding-top: 0.8rem; border-top: 1px solid var(--line); }
p.lead, header p, footer { color: var(--soft); max-width: 46rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; margin: 1rem 0; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
figure { margin: 1.4rem 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; overflow: hidden; }
figure img { display: block; width: 100%; box-sizing: border-box; background: #ffffff;
  padding: 0.8rem 0.9rem 0.4rem; }
figcaption { color: var(--ink); padding: 0.8rem 1.2rem 1rem; max-width: 50rem; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
footer { margin: 3rem 0 1rem; font-size: 0.9rem; }
@media (max-width: 44rem) {
  figure { overflow-x: auto; }
  figure img { width: 46rem; max-width: none; }
  figcaption { position: sticky; left: 0; max-width: calc(100vw - 5rem); }
}
"""


def pictures(subject: Subject) -> Iterator[Picture]:
    """All pictures of a page, ``COUNT`` of them, one after the other."""
    for make in _MAKERS:
        yield make(subject)


def write_page(folder: Path, subject: Subject, drawn: Iterable[Picture]) -> None:
    """Write every picture as a PNG, and ``index.html``, which holds them all.

    ``folder`` is there already. Raises CannotWrite.
    """
    sections: dict[str, list[str]] = {}
    for picture in drawn:
        pixels = picture.pixels()
        save_image(pixels, folder / f"{picture.name}.png", overwrite=True)
        sections.setdefault(picture.section, []).append(
            f'<figure id="{picture.name}">\n{webpage.image_tag(pixels, picture.title)}\n'
            f"<figcaption>{webpage.escaped(picture.caption)}</figcaption>\n</figure>"
        )
    links = " ".join(f'<a href="#{name}">{_SECTIONS[name][0]}</a>' for name in sections)
    parts = [_header(subject.observed), f"<nav>{links}</nav>"]
    for name, figures in sections.items():
        heading, lead = _SECTIONS[name]
        parts.append(f'<h2 id="{name}">{heading}</h2>\n<p class="lead">{lead}</p>')
        parts += figures
    parts.append(
        "<footer>Every number in a caption was computed for the picture that it stands below. "
        "The same pictures lie beside this page as PNG files.</footer>"
    )
    title = f"ldm-explain: {subject.observed.recipe.prompt}"
    text = webpage.page(title, "\n".join(parts), style=_STYLE)
    write_atomic(folder / PAGE, text.encode())


def _header(observed: Observed) -> str:
    """The prompt as heading, and how its picture was made."""
    recipe = observed.recipe
    model = recipe.model
    made = (
        f"{model.get('name')}, weights {str(model.get('sha256'))[:12]}; {recipe.scheduler}, "
        f"{recipe.steps} steps, guidance {recipe.guidance:g}, seed {recipe.seed}, "
        f"{recipe.width} x {recipe.height}"
    )
    prompt = recipe.prompt.strip() or "the empty prompt"
    return (
        f"<header>\n<h1>{webpage.escaped(prompt)}</h1>\n"
        "<p>How a latent diffusion model draws this, from the words to the pixels. "
        f"<code>{webpage.escaped(made)}</code></p>\n</header>"
    )
