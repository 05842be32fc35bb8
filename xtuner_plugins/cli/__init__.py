"""What starts a training: the launcher, the training process, and the terminal that both write to."""
