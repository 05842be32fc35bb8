"""From lines of an annotation file to checked conversations, and what can be wrong with them."""
