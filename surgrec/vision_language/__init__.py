"""Vision-language models on the benchmark's manifests: what they are asked, what they say, what it is worth."""
