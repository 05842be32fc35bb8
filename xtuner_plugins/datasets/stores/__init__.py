"""Data in object stores and behind MMEngine's file backends: reading, retrying, keeping a copy."""
