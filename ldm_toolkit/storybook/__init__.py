"""The storybook world: scenes, captions and pictures whose content is known exactly."""

from pathlib import Path

JUDGE_FILE = Path(__file__).parent / "judge.safetensors"
"""The judge that comes with the package."""

METADATA = "metadata.jsonl"
"""What says, in a folder of renders, what each of them shows."""
