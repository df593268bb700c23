"""Differentially private local training."""
