"""A new base out of a vision tower, a language model and a projector, and the parts out of a directory again."""
