"""Probes and the search wired together. The supervisor's half imports no torch."""
