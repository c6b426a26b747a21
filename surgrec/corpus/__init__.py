"""From folders and manifests to a packet index of a corpus."""
