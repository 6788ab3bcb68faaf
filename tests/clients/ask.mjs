// Asks one question through the TypeScript SDK, built with its defaults: the SDK chooses the source of the credential.

import { parseArgs } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import Anthropic from '@anthropic-ai/sdk';

const { values: options } = parseArgs({
  options: {
    stream: { type: 'boolean', default: false }, // stream the answer
    every: { type: 'string', default: '1' }, // seconds between two calls
    for: { type: 'string', default: '0' }, // repeat for this many seconds, with one client
  },
});

const question = {
  model: 'claude-sonnet-4-6',
  max_tokens: 64,
  messages: [{ role: 'user', content: 'say hi' }],
};

async function ask(client) {
  const message = options.stream
    ? await client.messages.stream(question).finalMessage()
    : await client.messages.create(question);
  return message.content.map((block) => (block.type === 'text' ? block.text : '')).join('');
}

try {
  const client = new Anthropic();
  const pause = Number(options.every) * 1000;
  const end = performance.now() + Number(options.for) * 1000;
  for (;;) {
    console.log(await ask(client));
    if (performance.now() + pause > end) break;
    await sleep(pause);
  }
} catch (error) {
  console.error(`${error.constructor.name}: ${error.message}`);
  process.exitCode = 1;
}
