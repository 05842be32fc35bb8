"""What is checked and shown before training, and how known data sets are prepared."""
