"""Models: what they are called, what they must satisfy, how they load."""
