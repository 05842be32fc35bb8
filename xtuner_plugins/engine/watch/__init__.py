"""What a run says while it works, how it is stopped, and what it ends of."""
