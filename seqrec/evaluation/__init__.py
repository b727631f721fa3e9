"""Evaluation: protocols, target ranks, metrics, and results user by user."""
