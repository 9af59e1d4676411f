"""Scenes of the storybook world, drawn when they are asked for."""

import hashlib

from PIL import Image

__all__ = ["StorybookScenes"]


class StorybookScenes:
    """Scenes of the storybook world's training split, drawn when they are asked for."""

    def __init__(self, count: int, size: int, captions: int, seed: int) -> None:
        from ldm_toolkit.storybook import render, scenes

        self._render, self._scenes = render, scenes
        self._count, self._size, self._captions, self._seed = count, size, captions, seed
        drawing = render.drawing_sha256()
        version = f"{scenes.SPLIT_VERSION} {count} {size} {captions} {seed} {drawing}"
        self.fingerprint = hashlib.sha256(f"storybook {version}".encode()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of scene ``index``."""
        return self._size, self._size

    def name(self, index: int) -> str:
        """The number of scene ``index``."""
        return f"scene {index}"

    def image(self, index: int) -> Image.Image:
        """Scene ``index``, RGB, size x size."""
        return self._render.render(self._scenes.sample_scene(self._seed, index), self._size)

    def mask(self, index: int) -> Image.Image | None:
        """None: scenes have no masks."""
        return None

    def captions(self, index: int) -> tuple[str, ...]:
        """Several captions of scene ``index``."""
        scene = self._scenes.sample_scene(self._seed, index)
        return tuple(
            self._scenes.caption(scene, self._seed + 1000 * n).text for n in range(self._captions)
        )
