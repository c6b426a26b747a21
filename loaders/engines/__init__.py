"""What decodes: from clip requests to frames."""
