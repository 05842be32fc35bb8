"""A base out of a vision tower, a language model and a projector; and its parts taken out again."""
