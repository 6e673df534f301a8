"""Experiments that the installed system does with itself, as a user would: through daemons and their clients."""
