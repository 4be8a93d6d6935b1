"""Forgetting and deleting people."""
