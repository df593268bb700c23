"""Whole federations on one machine with the same Coordinator and Participant."""
