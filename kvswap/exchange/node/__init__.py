"""The parts of one node, which the use cases share."""
