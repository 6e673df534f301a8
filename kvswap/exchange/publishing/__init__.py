"""Keeping and signing what is made here."""
