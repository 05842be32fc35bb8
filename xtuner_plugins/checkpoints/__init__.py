"""Everything between a run and a directory of weights: read, map, assemble, load, merge, export, verify."""
