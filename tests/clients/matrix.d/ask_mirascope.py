"""Asks one question through Mirascope."""

from mirascope import llm


@llm.call("anthropic/claude-sonnet-4-6")
def hi():
    return "say hi"


print(hi().text())
