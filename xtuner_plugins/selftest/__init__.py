"""The engine's equivalences, checked on a user's own config with a tiny model: see `equalities`."""
