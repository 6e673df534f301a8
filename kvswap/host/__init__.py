"""Hosted reads: an OpenAI-compatible front of a vLLM server, whose requests name a document instead of sending it.

`run` starts it, `app` is the HTTP, `prompts` and `answers` the two directions of OpenAI's format, `engine` vLLM,
`admission` who may ask how much, `journal` what is kept: clients, documents, and a signed record of every read.
"""
