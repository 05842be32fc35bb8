"""What was trained, laid over a base and written: official, hf, llava, GGUF, adapters; and a base built from parts."""
