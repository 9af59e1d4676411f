"""The formulas that training and evaluation rest on: pure functions, each with its source."""
