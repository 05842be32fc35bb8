"""Which recipes exist, and how is one written? Rows for every leaf of `configs/`, and the templates that they fill."""
