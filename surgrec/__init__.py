"""SurgRec: video pretraining for surgery, from folders of operation videos to video transformers."""

__version__ = "0.1.0"
