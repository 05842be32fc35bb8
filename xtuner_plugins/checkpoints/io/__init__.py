"""Weight files of every kind: tensors that stay on disk, readers, and the writer of a directory."""
