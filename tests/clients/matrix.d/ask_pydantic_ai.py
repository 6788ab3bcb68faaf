"""Asks one question through Pydantic AI."""

from pydantic_ai import Agent

print(Agent("anthropic:claude-sonnet-4-6").run_sync("say hi").output)
