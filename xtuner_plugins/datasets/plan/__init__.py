"""The plan of an epoch: which samples, how long each is, in which packs, in which order."""
