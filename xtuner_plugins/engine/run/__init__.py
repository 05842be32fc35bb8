"""What trains: the runtime, the loop, its steps, optimizers and strategies."""
