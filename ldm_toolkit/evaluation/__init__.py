"""Measures of models and of pictures, each with its error bar."""
