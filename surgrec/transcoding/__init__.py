"""Training proxies: small copies of videos whose every frame is traced back to its source."""
