"""Figures of a table, and the page of a policy."""
