"""A finished model for other people: the web page and the server."""
