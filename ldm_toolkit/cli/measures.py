"""What ``ldm-eval`` can measure: a row of `MEASURES` each. No torch.

To add a measure write a module with its function, and a row here; options, help, checks, the table
and scores.json follow from the row.

- A measure of pictures names a function in `ldm_toolkit.evaluation` that takes an
  `evaluation.subject.Subject` (pictures, captions, reference, model, features, folder, share of
  this process) and the values of its own options by name, and returns an
  `evaluation.report.Report`. ``ldm-eval fid clip`` runs several of them over the same pictures.
- A measure that is ``alone`` makes pictures or none by itself and is the only one of its command
  line. Its function lives in `ldm_toolkit.cli`, takes the whole `evaluate_request.EvalRequest` and
  the `terminal.Stop`, and returns a `Report` too; ``operands`` are the words that follow its name.

Every process of several calls the function; what the first returns is written.
"""

from dataclasses import dataclass
from typing import Any

__all__ = ["FEATURES", "MEASURES", "Measure", "Option"]


@dataclass(frozen=True)
class Option:
    """An option of a measure. ``kind`` int, float and str are values; bool is a switch.

    ``path`` ("file" or "folder") says that the value names one, which must be there.
    """

    flag: str
    about: str
    kind: type = str
    default: Any = None
    metavar: str | None = None
    least: float | None = None
    most: float | None = None
    path: str | None = None

    @property
    def name(self) -> str:
        """The key under which a measure's function gets the value."""
        return self.flag.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class Measure:
    """A row of the table.

    ``function`` is "module:name", imported when it runs. ``needs`` is made of "drawn" (pictures
    that the model draws for this), "reference", "features" (of the network that --features names)
    and "judge" (the bundled one).
    """

    about: str
    function: str
    needs: frozenset[str] = frozenset()
    options: tuple[Option, ...] = ()
    alone: bool = False
    operands: tuple[str, ...] = ()


FEATURES = ("judge", "inception")

_LOOKING = (
    Option(
        "--features",
        "network whose features fid, kid and recon compare: judge (bundled, for storybook "
        "pictures), inception (the usual one), or the file of another judge",
        default="judge",
        metavar="|".join((*FEATURES, "FILE")),
    ),
    Option(
        "--inception-weights",
        "pt_inception-2015-12-05-6726825d.pth or torch-fidelity's file of the same weights",
        path="file",
        metavar="FILE",
    ),
)
_JUDGING = Option(
    "--judge",
    "another judge's .safetensors file: adherence tells its score too, compare that instead",
    path="file",
    metavar="FILE",
)
_NEIGHBOURS = Option(
    "--neighbours",
    "training renders among which the nearest to a picture is looked for, against memorisation",
    int,
    default=1000,
    least=0,
    most=100_000,
)
_TRAINING_SEED = Option(
    "--training-seed",
    "the --seed of the training on --data storybook whose first renders these are",
    int,
    default=0,
    least=0,
)
_CLIP = Option(
    "--clip-model",
    "folder of a CLIP model as transformers saves it",
    path="folder",
    metavar="FOLDER",
)
_BOUNDS = (
    Option(
        "--timesteps",
        "steps of the schedule that are computed for a picture; as many as it has (1000) are exact",
        int,
        default=100,
        least=2,
    ),
    Option("--samples", "draws of the VAE's importance weights", int, default=16, least=1),
    Option(
        "--sigma",
        "standard deviation of the VAE's pixels in [-1, 1] that makes its pictures a likelihood; "
        "the one that suits these pictures best when not given",
        float,
        least=0.001,
        most=10,
    ),
)
_TURNS = (
    Option("--against", "also measure this, in turns: diffusers, its default pipeline on the same "
           "weights", metavar="diffusers"),
    Option("--batches", "how many pictures at once, one after the other", default="1,2,4,8",
           metavar="N,N"),
    Option("--rounds", "turns of each", int, default=3, least=1, most=1000),
)  # fmt: skip

MEASURES: dict[str, Measure] = {
    "fid": Measure(
        "Fréchet distance of the pictures' features to those of --reference",
        "ldm_toolkit.evaluation.distances:fid",
        frozenset({"reference", "features"}),
        _LOOKING,
    ),
    "kid": Measure(
        "kernel distance to --reference, unbiased in the number of pictures",
        "ldm_toolkit.evaluation.distances:kid",
        frozenset({"reference", "features"}),
        _LOOKING,
    ),
    "clip": Measure(
        "CLIP score of pictures and their captions",
        "ldm_toolkit.evaluation.clip:clip_score",
        options=(_CLIP,),
    ),
    "recon": Measure(
        "what the model's VAE makes of pictures: PSNR, SSIM, LPIPS, Fréchet distance",
        "ldm_toolkit.evaluation.reconstruction:reconstruction",
        options=_LOOKING,
    ),
    "adherence": Measure(
        "whether storybook pictures show what their prompts say, by the judge",
        "ldm_toolkit.evaluation.judged:judged",
        frozenset({"judge"}),
        (_JUDGING, _NEIGHBOURS, _TRAINING_SEED),
    ),
    "nll": Measure(
        "bits the model spends on pictures: its variational bound on latents and on pixels, and "
        "the VAE's importance-weighted one",
        "ldm_toolkit.evaluation.nll:likelihoods",
        options=_BOUNDS,
    ),
    "compare": Measure(
        "two models, LoRAs or settings on the same prompts and seeds, with a page of the pictures; "
        "A and B are MODEL,option=value,... such as storybook,lora=mine.safetensors:0.8,steps=20",
        "ldm_toolkit.cli.compare:compare",
        frozenset({"drawn"}),
        (_JUDGING, _CLIP),
        alone=True,
        operands=("A", "B"),
    ),
    "speed": Measure(
        "seconds of each stage of a picture on this machine, pictures a second, memory",
        "ldm_toolkit.cli.speed:measured",
        options=_TURNS,
        alone=True,
    ),
}
