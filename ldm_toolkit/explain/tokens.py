"""What the UNet gets of a prompt: tokens, and a vector for each."""

import numpy as np

from ldm_toolkit.explain.picture import DIVERGING, Picture, colour_bar, curves, drawable, largest
from ldm_toolkit.pipeline import LatentPipeline
from ldm_toolkit.tokens import show_tokens

__all__ = ["embedding"]

_SHOWN = 20


def embedding(pipeline: LatentPipeline, prompt: str) -> Picture:
    """A prompt's embedding as a picture, (T, D), and its first tokens larger. Raises UserError."""
    vectors = pipeline.encode_prompt(prompt)[0].float().cpu().numpy()
    length, width = vectors.shape
    rows = show_tokens(prompt, pipeline.components.tokenizer)
    shown = rows[:_SHOWN]
    reach = largest(vectors, 0.99)
    picture = Picture(
        "text", "embedding", "From words to numbers", (10, 4.0 + 0.21 * len(shown) + length / 77)
    )
    heights = [0.21 * len(shown) + 0.4, 1.6 + length / 77]
    top, whole = picture.grid(2, 1, height_ratios=heights)[:, 0]
    for axes, values in ((top, vectors[: len(shown)]), (whole, vectors)):
        drawn = axes.imshow(
            values, cmap=DIVERGING, vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest"
        )
    label = f"the first {len(shown)} tokens: text, id" if len(rows) > len(shown) else "tokens, ids"
    curves(top, label, "")
    curves(whole, f"the whole embedding, {length} x {width}", "number of the vector", "token")
    names = [f"{_spelled(row.text)}  {row.id}" for row in shown]
    top.set_yticks(range(len(shown)), names, parse_math=False)
    for axes in (top, whole):
        axes.grid(visible=False)
    whole.axhline(len(rows) - 0.5, color="black", linewidth=0.8, linestyle=":")
    colour_bar(picture, drawn, [top, whole])
    own = vectors[: len(shown)] / np.linalg.norm(vectors[: len(shown)], axis=1, keepdims=True)
    cosines = own @ own.T - 2 * np.eye(len(shown))
    first, second = np.unravel_index(cosines.argmax(), cosines.shape)
    filling = length - len(rows)
    picture.caption = (
        f"The tokenizer cuts the prompt into {len(rows)} tokens, with the marks of start and end, "
        f"and fills up to {length} with {filling} more, below the dotted line. The text encoder "
        f"turns each token into a vector of {width} numbers, so that the UNet gets {length} x "
        f"{width} = {length * width:,} numbers; 99 % of them lie between {-reach:.2f} and "
        f"{reach:.2f}. A vector knows the words before its token as well as the token; most alike "
        f"here are those of {_spelled(shown[first].text)} and {_spelled(shown[second].text)}, with "
        f"a cosine of {cosines[first, second]:.2f}."
    )
    return picture


def _spelled(token: str) -> str:
    """A token as people read it: what does not end a word goes on with a hyphen."""
    inner = not token.endswith(("</w>", "|>"))
    return drawable(token.removesuffix("</w>"), 18) + "-" * inner
