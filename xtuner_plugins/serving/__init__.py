"""Servers around a chat session: the OpenAI-compatible API and the web page."""
