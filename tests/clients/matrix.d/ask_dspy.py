"""Asks one question through DSPy."""

import dspy

print(dspy.LM("anthropic/claude-sonnet-4-6", cache=False)("say hi"))
