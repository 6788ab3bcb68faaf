// Asks one question through the Agent SDK for TypeScript, which starts its bundled claude.

import { query } from '@anthropic-ai/claude-agent-sdk';

for await (const message of query({ prompt: 'say hi', options: { model: 'claude-sonnet-4-6' } })) {
  if (message.type === 'result') console.log(message.result);
}
