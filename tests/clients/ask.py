"""Asks one question through the Python SDK, built with its defaults: the SDK chooses the source of the credential."""

import argparse
import sys
import time

import anthropic

parser = argparse.ArgumentParser()
parser.add_argument("--stream", action="store_true", help="stream the answer")
parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="pause between two calls")
parser.add_argument("--for", dest="duration", type=float, default=0.0, metavar="SECONDS", help="repeat for so long, with one client")
options = parser.parse_args()

question = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "say hi"}],
}


def ask(client: anthropic.Anthropic) -> str:
    if options.stream:
        with client.messages.stream(**question) as stream:
            return "".join(stream.text_stream)
    return "".join(block.text for block in client.messages.create(**question).content if block.type == "text")


try:
    client = anthropic.Anthropic()
    end = time.monotonic() + options.duration
    while True:
        print(ask(client), flush=True)
        if time.monotonic() + options.every > end:
            break
        time.sleep(options.every)
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(1)
