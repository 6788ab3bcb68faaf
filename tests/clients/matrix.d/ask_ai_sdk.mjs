// Asks one question through the Vercel AI SDK. Its base URL ends in /v1, unlike that of Anthropic's SDKs.

import { createAnthropic } from '@ai-sdk/anthropic';
import { generateText } from 'ai';

const anthropic = createAnthropic({ baseURL: `${process.env.ANTHROPIC_BASE_URL}/v1` });
const { text } = await generateText({ model: anthropic('claude-sonnet-4-6'), prompt: 'say hi' });
console.log(text);
