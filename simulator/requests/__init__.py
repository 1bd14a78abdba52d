"""The fields of a request.

sampling      sampling parameters, checked as vLLM checks them
constraints   structured outputs: a choice, JSON or a regular expression
prompts       prompts from messages, text or token ids, and the keys of their blocks
tokens        a deterministic tokenizer
"""
