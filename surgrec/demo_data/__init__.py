"""The demo's corpus: real clips out of packages, and procedurally drawn operations."""
