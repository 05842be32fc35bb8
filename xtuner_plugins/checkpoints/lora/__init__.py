"""Adapters and trained token rows: merged into base weights, or written for PEFT."""
