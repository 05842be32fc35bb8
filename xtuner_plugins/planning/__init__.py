"""How much memory and time a run will take: arithmetic on shapes, without PyTorch."""
