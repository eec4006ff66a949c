"""The parity report: every quantity computed in both frameworks, as JSON and as one page."""
