"""Chatting with a model, and verifying that an export answers as the trained model does."""
