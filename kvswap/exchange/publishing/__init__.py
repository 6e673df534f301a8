"""The common steps of publishing: keep what is made here, sign it, withdraw it."""
