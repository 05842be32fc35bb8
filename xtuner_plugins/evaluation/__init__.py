"""How good are the answers of a model? Questions with known answers, metrics, results, comparisons."""
