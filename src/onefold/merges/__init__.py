"""Merging profiles, the ledger of it, and taking a merge back."""
