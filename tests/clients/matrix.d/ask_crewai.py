"""Asks one question through CrewAI."""

from crewai import LLM

print(LLM(model="anthropic/claude-sonnet-4-6").call("say hi"))
