"""What is known for and against publishers and artifacts."""
