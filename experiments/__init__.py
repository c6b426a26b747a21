"""Small, complete, repeatable experiments that show the recipe at work: docs/evidence.md."""
