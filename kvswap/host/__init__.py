"""The host: an OpenAI-compatible front of a vLLM server, whose requests name a document instead of sending it.

`run` starts it, `app` is the HTTP API, `prompts` parses requests and `answers` formats responses, `engine` is the
client of vLLM, `admission` decides who may ask and how much, `usage_log` is the database: clients, documents, and a
usage log with a signed record of every hosted request.
"""
