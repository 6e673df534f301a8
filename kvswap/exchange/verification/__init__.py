"""The evidence for and against publishers and artifacts: audits, publisher status records, outcomes of verification."""
