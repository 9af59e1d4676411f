"""The command lines: parsed and checked with level 1 of the package, the rest imported after."""
