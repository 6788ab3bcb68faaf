"""Asks one question through LiteLLM."""

import litellm

question = [{"role": "user", "content": "say hi"}]
answer = litellm.completion(model="anthropic/claude-sonnet-4-6", max_tokens=64, messages=question)
print(answer.choices[0].message.content)
