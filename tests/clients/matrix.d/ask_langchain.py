"""Asks one question through LangChain."""

from langchain_anthropic import ChatAnthropic

print(ChatAnthropic(model="claude-sonnet-4-6").invoke("say hi").content)
