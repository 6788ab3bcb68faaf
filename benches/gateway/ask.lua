-- A request as the SDKs send one: their headers, and a body of one question.
wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("CAPABILITY")
wrk.headers["Accept"] = "application/json"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["User-Agent"] = "Anthropic/Python 0.75.0"
wrk.headers["X-Stainless-Lang"] = "python"
wrk.headers["X-Stainless-Package-Version"] = "0.75.0"
wrk.headers["X-Stainless-OS"] = "Linux"
wrk.headers["X-Stainless-Arch"] = "x64"
wrk.headers["X-Stainless-Runtime"] = "CPython"
wrk.headers["X-Stainless-Retry-Count"] = "0"
wrk.headers["Anthropic-Version"] = "2023-06-01"
wrk.headers["Anthropic-Beta"] = "interleaved-thinking-2025-05-14"
wrk.body = '{"model":"claude-sonnet-4-6","max_tokens":64,"messages":[{"role":"user","content":"say hi"}]}'
