"""What this machine can do for SurgRec: plain checks, each with a remedy."""
