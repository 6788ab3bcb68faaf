"""Asks one question through the Agent SDK for Python, which starts its bundled claude."""

import asyncio

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, query


async def main():
    async for message in query(prompt="say hi", options=ClaudeAgentOptions(model="claude-sonnet-4-6")):
        if isinstance(message, ResultMessage):
            print(message.result)


asyncio.run(main())
