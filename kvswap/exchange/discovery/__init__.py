"""Finding who has an artifact, and judging what is offered."""
