"""The hooks of a run, one file each."""
