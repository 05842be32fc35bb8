"""The model's own code, which training runs and every export ships.

Each file but this one is copied into exports as it is: torch and transformers only, relative imports, and it
must run on every transformers release from 4.37 on.
"""
