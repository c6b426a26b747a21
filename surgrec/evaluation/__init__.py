"""What a checkpoint can do: benchmark data sets, splits, features, probes and their figures."""
