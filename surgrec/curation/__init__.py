"""From an index to a plan: what is drawn from a corpus, and how often."""
