"""Models of this project in the formats that other tools read."""
