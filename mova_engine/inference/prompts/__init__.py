"""Prompt enhancement: a language model rewrites a prompt by rules, and plain code checks what it has written."""
