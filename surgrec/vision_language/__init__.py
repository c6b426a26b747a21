"""Vision-language models on the benchmark's manifests: what they are asked, say, and what that is worth."""
