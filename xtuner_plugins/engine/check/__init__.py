"""One check of a config: what its text tells (`text`), and one build on the meta device (`build`)."""
