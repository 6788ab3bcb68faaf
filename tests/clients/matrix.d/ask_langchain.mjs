// Asks one question through LangChain.

import { ChatAnthropic } from '@langchain/anthropic';

console.log((await new ChatAnthropic({ model: 'claude-sonnet-4-6' }).invoke('say hi')).content);
