"""The storybook world: scenes, captions and pictures whose content is known exactly."""
