"""A model that answers: the session behind chat, demo and evaluation, and the proof that an export answers alike."""
