"""Experiments that the installed system runs on itself, as a user would: through daemons and their clients."""
