"""Device code. Every kernel has a plain PyTorch twin in the same file: its test and its CPU path."""
