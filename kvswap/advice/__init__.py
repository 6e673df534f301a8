"""Advice from a log of requests: which prefixes are worth publishing, and what keeps prompts from sharing one.

Everything is counted in tokens of the model's own chat template and tokenizer, and in whole blocks, as only these are
shared; nothing is computed, and nothing leaves this machine.
"""
