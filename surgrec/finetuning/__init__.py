"""Fine-tuning of a pretrained encoder with a classification head, straight from video."""
