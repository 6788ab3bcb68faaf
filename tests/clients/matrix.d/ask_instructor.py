"""Asks one question through Instructor."""

import instructor

client = instructor.from_provider("anthropic/claude-sonnet-4-6")
question = [{"role": "user", "content": "say hi"}]
print(client.chat.completions.create(response_model=None, max_tokens=64, messages=question).content[0].text)
