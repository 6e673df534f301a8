"""The command line: one file a verb.  Verbs parse and render; they decide nothing and catch nothing."""
