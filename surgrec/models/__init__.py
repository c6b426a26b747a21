"""Vision transformers and the two pretraining objectives."""
