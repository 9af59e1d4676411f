"""``ldm-eval clip``: how well pictures and captions agree by CLIP (Hessel et al. 2021)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm_toolkit.errors import LIBRARY_ERRORS, InputError, ModelError, first_line, listed
from ldm_toolkit.evaluation.intervals import mean
from ldm_toolkit.evaluation.report import Report
from ldm_toolkit.evaluation.subject import Subject
from ldm_toolkit.files import sha256_file
from ldm_toolkit.hardware import choose_device
from ldm_toolkit.models.headers import check_safetensors

__all__ = ["clip_score", "clip_scores"]

_WEIGHTS = "model.safetensors"


def clip_score(subject: Subject, *, clip_model: Path) -> Report:
    """The mean of `clip_scores`. Raises InputError for pictures without captions, ModelError."""
    found, settings = clip_scores(subject, clip_model)
    return Report({"clip": mean(found.tolist())}, settings | {"pictures": len(found)})


def clip_scores(subject: Subject, clip_model: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """100 times the cosine between picture and caption, 0 where it is negative; (N,).

    Also what makes it comparable. torchmetrics' CLIPScore computes the same, but not with
    transformers 5. Raises InputError for pictures without captions, ModelError.
    """
    pictures = subject.pictures
    captions = [pictures.caption(index) for index in range(len(pictures))]
    missing = sum(one is None for one in captions)
    if missing:
        raise InputError(
            f"clip needs captions, and {missing} of {len(captions)} pictures in {pictures.place} "
            "have none: add metadata.jsonl with file_name and text, or .txt files beside them"
        )
    model, processor, tokenizer = _load(clip_model)
    device = choose_device(subject.device)
    model.to(device)
    digest = sha256_file(clip_model / _WEIGHTS)

    @torch.inference_mode()
    def compute(block: Sequence[int]) -> np.ndarray:
        images = [pictures.image(index) for index in block]
        words = tokenizer([captions[i] for i in block], padding=True, truncation=True,
                          max_length=model.config.text_config.max_position_embeddings,
                          return_tensors="pt")  # fmt: skip
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        found = model(
            input_ids=words["input_ids"].to(device),
            attention_mask=words["attention_mask"].to(device),
            pixel_values=pixels.to(device),
        )
        cosines = torch.cosine_similarity(found.image_embeds, found.text_embeds)
        return 100 * cosines.clamp(min=0)[:, None].float().cpu().numpy()

    rows = subject.rows(pictures, f"clip {digest}", compute, "comparing with captions")
    return rows[:, 0], {"clip_sha256": digest, "resize": _resize(processor)}


def _load(folder: Path) -> tuple[Any, Any, Any]:
    """Networks, what prepares pictures and what prepares words. Raises ModelError."""
    lacking = [
        name
        for name in ("config.json", _WEIGHTS, "preprocessor_config.json")
        if not (folder / name).is_file()
    ]
    if lacking:
        raise ModelError(
            f"--clip-model {folder} holds no {', no '.join(lacking)}; expected a CLIP model as "
            "transformers saves it, with its processor: hf download openai/clip-vit-large-patch14 "
            "--local-dir clip"
        )
    check_safetensors(folder / _WEIGHTS)
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    try:
        local: dict[str, Any] = {"local_files_only": True}
        loaded: Any = CLIPModel.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **local
        )
        model, told = loaded
        processor = CLIPImageProcessorPil.from_pretrained(folder, **local)
        tokenizer = CLIPTokenizer.from_pretrained(folder, **local)
    except LIBRARY_ERRORS as error:
        raise ModelError(f"--clip-model {folder} cannot be used: {first_line(error)}") from error
    if told["missing_keys"]:  # which would be random numbers
        missing = listed(sorted(told["missing_keys"]))
        raise ModelError(f"{folder / _WEIGHTS} lacks weights of a CLIP model: {missing}")
    return model.eval(), processor, tokenizer


def _resize(processor: Any) -> str:
    """How pictures are brought to the network's size."""
    side = processor.size.get("shortest_edge", processor.size.get("height"))
    crop = processor.crop_size.get("height")
    return f"Pillow filter {int(processor.resample)}, shorter side to {side}, middle {crop}x{crop}"
