"""Assembles a base from a vision tower, a language model and a projector; extracts the parts of a model directory."""
